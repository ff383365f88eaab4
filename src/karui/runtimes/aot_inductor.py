"""AOTInductor: the model as machine code for this kind of CPU, in one ``model.pt2`` package.

It needs no compiler where it runs, but the instruction set it was compiled for, and it keeps the
number of threads it was compiled with. It loads with ``torch._inductor.aoti_load_package``, also in C++.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import torch
import torch._inductor

from karui.graph import inductor, inductor_int8
from karui.graph.half import with_told
from karui.graph.inductor_lean import lean
from karui.graph.onnx import quiet
from karui.graph.program import open_exported, predictor
from karui.graph.ranges.table import save_table
from karui.numerics import Calibration
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.runtimes import Predict


@final
@dataclass(frozen=True)
class AotInductor(Runtime):
    """``calibration`` and ``quantizer`` (karui's table, or torchao) are of static INT8."""

    calibration: Calibration = "minmax"
    quantizer: Literal["karui", "torchao"] = "karui"

    def refuses(self, ask: Ask) -> str | None:
        return inductor.refuses(ask, self.quantizer)

    def casts_in_torch(self, precision: str) -> bool:
        return precision in ("bf16", "fp16")

    def build(self, source: Source, folder: Path) -> Built:
        torch.set_num_threads(source.threads)
        precision, notes = source.numerics.default, (f"{source.threads} thread(s)",)
        if precision.startswith("int8"):
            return self.quantized(source, folder, notes)
        compile_into(folder, open_exported(source.folder / "model.pt2"))
        return Built(with_told(source, inductor.executed(precision, Counter(), notes)))

    def quantized(self, source: Source, folder: Path, notes: tuple[str, ...]) -> Built:
        found = inductor_int8.quantized(source, self.quantizer, self.calibration)
        kernels = compile_into(folder, found.program)
        if found.found:
            save_table(found.found.table, folder)
        executed = inductor.executed(
            source.numerics.default, kernels, (*notes, *inductor_int8.said(found.in_float))
        )
        return Built(executed | found.covered(kernels.total()), found.reference)

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        torch.set_num_threads(threads)
        with quiet():
            loader = torch._inductor.aoti_load_package(str(folder / "model.pt2")).loader
        return predictor(lambda *tensors: loader.run(list(tensors)), signature)


def compile_into(folder: Path, program: torch.export.ExportedProgram) -> Counter[str]:
    """Write the package; gives the INT8 kernels that were made, by kind."""
    path = folder / "model.pt2"
    with inductor.compiling() as kernels, torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"freezing": True}
        )
    lean(path)
    return kernels
