"""What the runtimes built on Inductor share: what they refuse, and facts of what it generated."""

from __future__ import annotations

import importlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from karui.errors import BuildFailed, foreign
from karui.graph.onnx import quiet, refuses_rules

if TYPE_CHECKING:
    from karui.runtimes import Ask

VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
PACKED = "_weight_prepack_matcher_count"  # one for each layer whose INT8 weights were packed for a kernel
RECURRENT = ("LSTM", "GRU", "RNN")
KERNELS = ("qconv", "qlinear")


def refuses(ask: Ask, quantizer: str) -> str | None:
    """Why Inductor cannot honour ``ask`` on this machine, or None."""
    if ask.form != "torch":
        return "the model was given as ONNX: there is no torch program to compile"
    if shutil.which(os.environ.get("CXX") or "g++") is None:
        return "it generates C++ and found no compiler: install g++, or set CXX"
    if ask.numerics.default == "fp16" and set(RECURRENT) & set(ask.layers):
        return "recurrent layers have no fp16 kernels: every time step would be compiled, for minutes"
    int8 = ask.numerics.default in ("int8", "int8_dynamic")
    return (refuses_int8(ask, quantizer) if int8 else None) or refuses_rules(ask.numerics)


def refuses_int8(ask: Ask, quantizer: str) -> str | None:
    if find_spec("torchao") is None:
        return "INT8 needs the package torchao: pip install 'karui[torchao]'"
    by_table = ask.numerics.default == "int8" and quantizer == "karui"  # of 7 bits, where 8 would saturate
    if not by_table and not set(VNNI) & set(ask.flags):
        return "the CPU has no VNNI, and torchao's 8-bit weights would saturate its kernels"
    if ask.numerics.default == "int8" and not ask.calibrated:
        return "static INT8 needs calibration data"
    if ask.numerics.default == "int8_dynamic" and not any(map(is_linear, ask.layers)):
        return "the model has no linear layer, and only these have dynamic INT8 kernels"
    return None


def is_linear(kind: str) -> bool:
    return kind.endswith("Linear")


@contextmanager
def compiling() -> Iterator[Counter[str]]:
    """Around a compilation: quiet; afterwards the counter holds the INT8 kernels it made, by kind.

    Raises BuildFailed when Inductor fails.
    """
    found: Counter[str] = Counter()
    before = lowered()
    with quiet(), foreign(BuildFailed, "Inductor could not compile the model"):
        yield found
    found.update(lowered() - before)


def lowered() -> Counter[str]:
    counters = importlib.import_module("torch._dynamo.utils").counters["inductor"]
    return Counter({kind: counters[kind + PACKED] for kind in KERNELS})


def executed(precision: str, kernels: Counter[str], notes: tuple[str, ...]) -> dict[str, Any]:
    """The facts for ``Built.executed``; raises BuildFailed when INT8 was asked and none was made."""
    facts: dict[str, Any] = {"precision": precision, "instruction_set": instruction_set()}
    if precision.startswith("int8"):
        if not kernels.total():
            raise BuildFailed(
                "Inductor made no INT8 kernel",
                fix="int8@onnxruntime or int8@openvino",
                why="it lowered no layer of the quantized program",
            )
        facts["int8_kernels"] = kernels.total()
        notes = (", ".join(f"{kind} x{n}" for kind, n in sorted(kernels.items()) if n), *notes)
    return facts | {"detail": "; ".join([f"Inductor for {facts['instruction_set']}", *notes])}


def instruction_set() -> str:
    """The vector instruction set Inductor generates code for here, such as ``avx512``."""
    with quiet():
        isa = importlib.import_module("torch._inductor.cpu_vec_isa").pick_vec_isa()
    return str(isa).lower() if isa else "no vector instructions"
