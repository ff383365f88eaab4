"""ONNX Runtime on the CPU. The folder holds one plain ``model.onnx`` (graph/ort_build says what is in it)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from its import on, ONNX Runtime reports otherwise
import onnxruntime  # noqa: F401  a missing package is told by the one who loads this file

from karui import host
from karui.graph.onnx import OPSET
from karui.graph.ort_build import OrtBuild
from karui.graph.ort_session import predictor, session_of
from karui.numerics import Calibration
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.runtimes import Predict


@final
@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """``calibration``, ``per_channel`` and ``quantizer`` (karui's table, or ONNX Runtime's own) are of
    static INT8. pack_zeros: weights that are mostly zero are stored so (graph/onnx_zeros).
    """

    opset: int = OPSET
    calibration: Calibration = "minmax"
    per_channel: bool = True
    quantizer: Literal["karui", "onnxruntime"] = "karui"
    pack_zeros: bool = True

    def refuses(self, ask: Ask) -> str | None:
        return self.how(frozenset(ask.flags)).refuses(ask)

    def how(self, flags: frozenset[str]) -> OrtBuild:
        return OrtBuild(
            self.opset,
            self.calibration,
            self.per_channel,
            self.quantizer,
            self.pack_zeros,
            host.saturates(flags),
        )

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def build(self, source: Source, folder: Path) -> Built:
        return Built(*self.how(source.flags).write(source, folder / "model.onnx"))

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        return predictor(session_of(folder / "model.onnx", threads), signature)
