"""TorchScript: a frozen trace of the model, in one ``model.pt`` that old C++ hosts can load.

The format is deprecated upstream. The trace is of the model itself: tracing or freezing an *exported*
recurrent program corrupts memory in torch 2.13.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch

from karui.errors import BuildFailed, foreign
from karui.graph.half import with_told
from karui.graph.onnx import quiet
from karui.graph.program import predictor
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Arrays
    from karui.runtimes import Predict

CLOSE = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}  # largest change by freezing, as a share of the scale


@final
@dataclass(frozen=True)
class TorchScript(Runtime):
    """``freeze`` makes the weights constants of the graph, which lets it be simplified."""

    freeze: bool = True

    def refuses(self, ask: Ask) -> str | None:
        if ask.form != "torch":
            return "the model was given as ONNX: there is no torch module to trace"
        if ask.numerics.default.startswith("int"):
            kind = ask.numerics.default[:4].upper()
            return f"TorchScript's {kind} operations belong to a deprecated package"
        if ask.numerics.rules or ask.numerics.facts:
            return "it runs the whole model in one precision"
        return None

    def casts_in_torch(self, precision: str) -> bool:
        return precision in ("bf16", "fp16")

    def build(self, source: Source, folder: Path) -> Built:
        given = source.folder / "traced.pt"
        if not given.is_file():
            raise BuildFailed(
                "the model has no TorchScript trace",
                why="torch.jit.trace could not follow it",
                fix="another runtime: this format is deprecated",
            )
        torch.set_num_threads(source.threads)
        traced = open_traced(given)
        reason = frozen(traced, source, folder / "model.pt") if self.freeze else "as asked"
        if reason:
            shutil.copyfile(given, folder / "model.pt")
        detail = f"TorchScript interpreter, PyTorch {torch.__version__} kernels, "
        detail += f"not frozen ({reason})" if reason else "frozen"
        facts = {"precision": source.numerics.default, "detail": detail, "frozen": not reason}
        return Built(with_told(source, facts))

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        torch.set_num_threads(threads)
        return predictor(open_traced(folder / "model.pt"), signature)


def open_traced(path: Path) -> torch.jit.ScriptModule:
    with quiet(), foreign(BuildFailed, f"{path.name} is not a TorchScript file that this torch can read"):
        module: torch.jit.ScriptModule = torch.jit.load(path)  # type: ignore[no-untyped-call]
        return module


def frozen(traced: torch.jit.ScriptModule, source: Source, path: Path) -> str:
    """Write the frozen trace; the answer is empty, or says why the file must not be used."""
    try:
        with quiet(), foreign(BuildFailed, "freezing failed"):
            torch.jit.freeze(traced.eval()).save(path)
            before, after = (predictor(module, source.signature) for module in (traced, open_traced(path)))
            gap = max(distance(before, after, rows) for rows in pieces(source))
    except BuildFailed as error:
        return error.line
    wrong = gap > CLOSE[source.numerics.default]
    return f"freezing changed the outputs by {gap:.2g} of their scale" if wrong else ""


def pieces(source: Source) -> list[Arrays]:
    """The probe as one sample, and as a whole; or as one batch of the only size that runs."""
    whole = len(next(iter(source.probe.values())))
    sizes = (1, whole) if source.signature.dynamic_batch else (source.signature.batch,)
    return [{name: array[:size] for name, array in source.probe.items()} for size in sizes]


def distance(before: Predict, after: Predict, arrays: Arrays) -> float:
    """Largest difference of the outputs as a share of their scale; infinite when one is not finite."""
    import numpy as np

    worst = 0.0
    for one, other in zip(before(arrays), after(arrays), strict=True):
        scale = max(float(np.abs(one).max(initial=0.0)), 1e-12)
        gap = np.abs(one.astype(np.float64) - other.astype(np.float64)).max(initial=0.0)
        worst = max(worst, float(np.nan_to_num(gap, nan=np.inf)) / scale)
    return worst
