"""ExecuTorch on the CPU, by its XNNPACK delegate, as on phones. The folder holds one ``model.pte``.

Static INT8 is emitted from karui's table of ranges, which lies beside it. What the delegate does not take
runs on ExecuTorch's portable kernels, which are slow; both are counted.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np

import torch  # isort: skip (the extension below is linked to its library)
import executorch.extension.pybindings._C as engine  # the public module imports the whole compiler as well

from karui.errors import BuildFailed, foreign
from karui.graph.onnx import is_product, only_recurrent, quiet, refuses_rules
from karui.graph.ranges.table import save_table
from karui.graph.xnnpack import Lowerable, lowerable, weight_name
from karui.numerics import Calibration
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.runtimes import Predict

WEIGHT_AT = {"convolution": 1, "linear": 1, "addmm": 2, "mm": 1, "bmm": 1}  # where a product has its matrix
MOVING = ("getitem", "sym_size", "executorch_call_delegate")  # no kernel of its own
ROUNDING = ("quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel", "choose_qparams")


@final
@dataclass(frozen=True)
class ExecuTorch(Runtime):
    """``calibration`` and ``quantizer`` (karui's table, or ExecuTorch's own) are of static INT8."""

    calibration: Calibration = "minmax"
    quantizer: Literal["karui", "xnnpack"] = "karui"

    def refuses(self, ask: Ask) -> str | None:
        precision = ask.numerics.default
        if ask.form != "torch":
            return "the model was given as ONNX: there is no torch program to lower"
        if precision in ("bf16", "fp16"):
            return f"files for XNNPACK are made in FP32 and INT8 here, not in {precision}"
        if precision == "int8" and not ask.calibrated:
            return "static INT8 needs calibration data"
        return refuses_rules(ask.numerics) or refuses_layers(precision, ask.layers)

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def build(self, source: Source, folder: Path) -> Built:
        made = lowerable(source, self.quantizer, self.calibration)
        with quiet(), foreign(BuildFailed, "ExecuTorch could not lower the model"):
            edge = lowered(made.program)
            kernels = Kernels.of(edge.exported_program())
            executed = told(kernels, made, source)
            with (folder / "model.pte").open("wb") as file:
                edge.to_executorch().write_to_file(file)
        if made.found:
            save_table(made.found.table, folder)
        return Built(executed, made.reference)

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        if engine._threadpool_get_thread_count() != threads:  # the pool reads no environment variable
            engine._unsafe_reset_threadpool(threads)  # unsafe for methods that were loaded before
        program = engine._load_program(str(folder / "model.pte"))
        return predictor(program, program.load_method("forward"), signature)


def refuses_layers(precision: str, layers: Mapping[str, int]) -> str | None:
    """Why the model could not run, or why INT8 would change nothing."""
    if deep := [layer for layer in ("Conv3d", "ConvTranspose3d") if layer in layers]:
        return f"neither XNNPACK nor ExecuTorch's portable kernels have {deep[0]}"
    if not precision.startswith("int8") or not layers:
        return None
    if recurrent := only_recurrent(layers):
        return f"it leaves {recurrent} in float, and there is no other layer to quantize"
    if precision == "int8_dynamic" and not any(is_product(layer) or layer == "Conv2d" for layer in layers):
        return "no Linear or Conv2d layer: XNNPACK quantizes nothing else dynamically"
    return None


def lowered(program: torch.export.ExportedProgram) -> Any:
    """The program with what XNNPACK takes handed to it."""
    exir = importlib.import_module("executorch.exir")
    partition = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    return exir.to_edge_transform_and_lower(program, partitioner=[partition.XnnpackPartitioner()])


@dataclass(frozen=True)
class Kernels:
    """What a lowered program will run.

    delegated, portable: operations by name. int8: the stored integers of each product that the delegate
    multiplies in INT8. subgraphs: calls of the delegate. unread: stored integers that the delegate left to
    kernels which cannot read them.
    """

    delegated: Counter[str]
    portable: Counter[str]
    int8: tuple[str, ...]
    subgraphs: int
    unread: tuple[str, ...]

    @classmethod
    def of(cls, program: Any) -> Kernels:
        parts = [
            getattr(program.graph_module, node.target).original_module
            for node in program.graph.nodes
            if node.op == "get_attr" and node.target.startswith("lowered_module")
        ]
        return cls(
            delegated=Counter(name for part in parts for name in operations(part)),
            portable=Counter(operations(program)),
            int8=tuple(name for part in parts for name in in_int8(part)),
            subgraphs=len(parts),
            unread=tuple(
                weight_name(program, node.args[0])
                for node in program.graph.nodes
                if op_name(node) == "dequantize_per_channel"
            ),
        )

    @property
    def products(self) -> int:
        """Convolutions and matrix products, wherever they run."""
        return sum(found[name] for found in (self.delegated, self.portable) for name in WEIGHT_AT)


def op_name(node: Any) -> str:
    """``convolution`` of ``aten.convolution.default``; empty for what is no operation."""
    if node.op != "call_function":
        return ""
    known = getattr(node.target, "_schema", None)
    return (
        str(known.name.rpartition("::")[2]) if known else str(getattr(node.target, "__name__", node.target))
    )


def operations(program: Any) -> Iterator[str]:
    """Names of the operations that do something: the roundings around them belong to their kernels."""
    for node in program.graph.nodes:
        name = op_name(node)
        if name and not name.startswith((*MOVING, *ROUNDING)):
            yield name


def in_int8(program: Any) -> Iterator[str]:
    """The stored integers of each product of a delegated program."""
    for node in program.graph.nodes:
        if (name := op_name(node)) in WEIGHT_AT:
            matrix = node.args[WEIGHT_AT[name]]
            while matrix.op == "call_function" and op_name(matrix) in ("permute_copy", "t_copy", "view_copy"):
                matrix = matrix.args[0]
            if op_name(matrix).startswith("dequantize"):
                yield weight_name(program, matrix.args[0])


def told(kernels: Kernels, made: Lowerable, source: Source) -> dict[str, Any]:
    """The facts for ``Built.executed``. Raises BuildFailed when they are not what was asked for."""
    precision = source.numerics.default
    if kernels.unread:
        layers = ", ".join(made.stored.get(name, name) for name in kernels.unread)
        raise BuildFailed(
            f"XNNPACK has no INT8 kernel for {layers}", fix="keep it in float: int8[layer=fp32]@executorch"
        )
    if not kernels.delegated:
        raise BuildFailed("XNNPACK takes no operation of the model", why=f"it is {listed(kernels.portable)}")
    facts: dict[str, Any] = {
        "precision": precision,
        "int8_kernels": len(kernels.int8),
        "float_kernels": kernels.products - len(kernels.int8),
        "subgraphs": kernels.subgraphs,
        "delegated": dict(kernels.delegated),
        "fallback": [
            {"op": name, "count": count, "reason": "not among what XNNPACK takes: a portable kernel"}
            for name, count in sorted(kernels.portable.items())
        ],
        "detail": f"XNNPACK: {listed(kernels.delegated)}; portable: {listed(kernels.portable)}",
    }
    return facts | covered(kernels, made) if precision.startswith("int8") else facts


def covered(kernels: Kernels, made: Lowerable) -> dict[str, Any]:
    if not kernels.int8:
        raise BuildFailed("no layer of the model would run in INT8", why="XNNPACK took none of them")
    if not made.found:
        return {}
    return made.found.covered([f"{made.stored[name]}/" for name in kernels.int8 if name in made.stored])


def listed(operations: Counter[str]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in sorted(operations.items())) or "nothing"


def predictor(program: Any, method: Any, signature: Signature) -> Predict:
    """Batches larger than memory was planned for go in parts. ``program`` must outlive its method."""
    names = [port.name for port in signature.inputs]
    most = method.method_meta().input_tensor_meta(0).sizes()[0] if names else 1

    def predict(arrays: Arrays) -> list[Array]:
        tensors = [torch.from_numpy(arrays[name]) for name in names]
        rows = len(tensors[0])
        if rows <= most:
            return [output.numpy() for output in method(tensors)]
        parts = [predict_part(tensors, start) for start in range(0, rows, most)]
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def predict_part(tensors: list[torch.Tensor], start: int) -> list[Array]:
        assert program is not None
        return [output.numpy() for output in method([tensor[start : start + most] for tensor in tensors])]

    return predict
