"""AOTInductor: the model as machine code for this kind of CPU, in one ``model.pt2`` package.

It needs no compiler where it runs, but the instruction set it was compiled for, and it keeps the
number of threads it was compiled with. It loads with ``torch._inductor.aoti_load_package``, also in C++.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
import torch._inductor

from karui.graph import inductor, inductor_int8
from karui.graph.onnx import quiet
from karui.graph.program import open_exported, predictor
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.runtimes import Predict


@final
@dataclass(frozen=True)
class AotInductor(Runtime):
    def refuses(self, ask: Ask) -> str | None:
        return inductor.refuses(ask)

    def casts_in_torch(self, precision: str) -> bool:
        return precision in ("bf16", "fp16")

    def build(self, source: Source, folder: Path) -> Built:
        torch.set_num_threads(source.threads)
        program, precision = open_exported(source.folder / "model.pt2"), source.numerics.default
        notes: tuple[str, ...] = (f"{source.threads} thread(s)",)
        reference = None
        if precision.startswith("int8"):
            found = inductor_int8.quantize(
                program, source.signature, source.numerics, source.calibrate, source.probe
            )
            program, reference = found.program, found.reference
            notes += inductor_int8.said(found.in_float)
        with inductor.compiling() as kernels, torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(folder / "model.pt2"), inductor_configs={"freezing": True}
            )
        return Built(inductor.executed(precision, kernels, notes), reference)

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        torch.set_num_threads(threads)
        with quiet():
            loader = torch._inductor.aoti_load_package(str(folder / "model.pt2")).loader
        return predictor(lambda *tensors: loader.run(list(tensors)), signature)
