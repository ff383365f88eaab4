"""``torch.compile`` with weights frozen. The folder holds the exported program, not machine code.

``model.pt2`` is the program in float, ``quantized.pt2`` one with INT8 operations. Code is generated where
the artifact runs, at the first call of each new batch size, so a C++ compiler is needed there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch

from karui.graph import inductor, inductor_int8
from karui.graph.half import with_told
from karui.graph.onnx import quiet
from karui.graph.placement import Placement
from karui.graph.program import open_exported, save_exported
from karui.graph.ranges.table import save_table
from karui.numerics import Calibration
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.runtimes import Predict

JIT = "compiled where it runs, which needs a C++ compiler"


@final
@dataclass(frozen=True)
class TorchCompile(Runtime):
    """``mode`` is that of ``torch.compile``; ``calibration`` and ``quantizer`` (karui's table, or torchao)
    are of static INT8. device, channels_last, autocast: see ``graph.placement``. backend: tensorrt is that of
    the package torch-tensorrt, for NVIDIA GPUs.
    """

    backend: Literal["inductor", "tensorrt"] = "inductor"
    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    calibration: Calibration = "minmax"
    quantizer: Literal["karui", "torchao"] = "karui"
    device: Literal["cpu", "cuda"] = "cpu"
    channels_last: bool = False
    autocast: Literal["bf16", "fp16"] | None = None

    WHERE = frozenset({"device"})

    def refuses(self, ask: Ask) -> str | None:
        here = self.place.refuses(ask.numerics.default) or inductor.refuses(ask, self.quantizer)
        return here or (self.refuses_tensorrt() if self.backend == "tensorrt" else None)

    def refuses_tensorrt(self) -> str | None:
        if self.device != "cuda":
            return "backend=tensorrt needs device=cuda"
        if self.mode != "default":
            return f"mode={self.mode} is Inductor's, not TensorRT's"
        if find_spec("torch_tensorrt") is None:
            return "the package 'torch_tensorrt' is not installed: pip install torch-tensorrt"
        return None

    def casts_in_torch(self, precision: str) -> bool:
        return precision in ("bf16", "fp16") and not self.autocast

    @property
    def place(self) -> Placement:
        return Placement(self.device, self.channels_last, self.autocast)

    def build(self, source: Source, folder: Path) -> Built:
        precision = source.numerics.default
        if precision.startswith("int8"):
            return self.quantized(source, folder)
        save_exported(open_exported(source.folder / "model.pt2"), folder / "model.pt2")
        made_by = ["Inductor", f"mode {self.mode}"] if self.backend == "inductor" else ["torch-tensorrt"]
        detail = ", ".join([*made_by, *self.place.told(), JIT])
        return Built(with_told(source, {"precision": precision, "detail": detail}))

    def quantized(self, source: Source, folder: Path) -> Built:
        """Quantize and compile once here, which tells whether INT8 kernels come out of it."""
        found = inductor_int8.quantized(source, self.quantizer, self.calibration)
        save_exported(found.program, folder / "quantized.pt2")
        with inductor.compiling() as kernels:
            predict = self.load(folder, source.signature, source.threads)
            predict({name: array[: source.signature.batch] for name, array in source.calibrate.items()})
        notes = (f"mode {self.mode}", JIT, *inductor_int8.said(found.in_float))
        if found.found:
            save_table(found.found.table, folder)
        executed = inductor.executed(source.numerics.default, kernels, notes)
        return Built(executed | found.covered(kernels.total()), found.reference)

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        torch.set_num_threads(threads)
        path = folder / "quantized.pt2"
        if path.is_file():
            inductor_int8.operations()
        program = self.place.open(path if path.is_file() else folder / "model.pt2")
        if self.backend == "tensorrt":
            return self.place.predictor(by_tensorrt(program), signature)
        with quiet():
            compiled = torch.compile(program, mode=self.mode)
        return self.place.predictor(frozen(compiled), signature)


def by_tensorrt(program: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled by torch-tensorrt, in the types of the program."""
    importlib.import_module("torch_tensorrt")  # it makes itself known to torch.compile
    compiled: Callable[..., Any] = torch.compile(
        program, backend="torch_tensorrt", options={"use_explicit_typing": True}
    )
    return compiled


def frozen(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled with weights frozen, whenever a new batch size comes."""
    seen: set[int] = set()

    def call(*tensors: torch.Tensor) -> Any:
        rows = len(tensors[0])
        if rows in seen:
            return compiled(*tensors)
        with quiet(), torch._inductor.config.patch(freezing=True):
            outputs = compiled(*tensors)
        seen.add(rows)
        return outputs

    return call
