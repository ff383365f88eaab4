"""PyTorch in eager mode: the reference every other runtime is compared with.

The exported program is run operation by operation with PyTorch's own kernels. Its call wrapper
(guards, nested-input handling) is taken off, so that it is no slower than the original module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch

from karui.graph.program import open_exported, open_program, save_exported
from karui.graph.program import predictor as predictor_of
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.runtimes import Predict


@final
@dataclass(frozen=True)
class TorchEager(Runtime):
    def refuses(self, ask: Ask) -> str | None:
        if ask.form != "torch":
            return "the model was given as ONNX: there is no torch module to run"
        if ask.numerics.rules:
            return "it runs the whole model in one precision"
        if ask.numerics.default.startswith("int8"):
            return "PyTorch's eager INT8 kernels belong to a deprecated package"
        return None

    def casts_in_torch(self, precision: str) -> bool:
        return precision in ("bf16", "fp16")

    def build(self, source: Source, folder: Path) -> Built:
        save_exported(open_exported(source.folder / "model.pt2"), folder / "model.pt2")
        precision = source.numerics.default
        return Built({"precision": precision, "detail": f"PyTorch {torch.__version__} kernels"})

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        torch.set_num_threads(threads)
        return predictor_of(open_program(folder / "model.pt2"), signature)
