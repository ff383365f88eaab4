"""ONNX Runtime on the CPU. The folder holds one plain ``model.onnx`` (graph/ort_build says what is in it)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from its import on, ONNX Runtime reports otherwise
import onnxruntime  # noqa: F401  a missing package is told by the one who loads this file

from karui import host
from karui.graph.onnx import OPSET, every_node
from karui.graph.ort_build import FLOAT_KERNELS, OrtBuild, listed
from karui.graph.ort_session import PROVIDERS, predictor, refuses_provider, session_of
from karui.numerics import Calibration
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.runtimes import Predict


@final
@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """``calibration``, ``per_channel`` and ``quantizer`` (karui's table, or ONNX Runtime's own) are of
    static INT8. pack_zeros: weights that are mostly zero are stored so (graph/onnx_zeros). provider: where it
    runs; ``cuda`` and ``tensorrt`` need an NVIDIA GPU and onnxruntime-gpu.
    """

    opset: int = OPSET
    calibration: Calibration = "minmax"
    per_channel: bool = True
    quantizer: Literal["karui", "onnxruntime"] = "karui"
    pack_zeros: bool = True
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"

    WHERE = frozenset({"provider"})

    def refuses(self, ask: Ask) -> str | None:
        reason = refuses_provider(self.provider, ask.numerics.default)
        return reason or self.how(frozenset(ask.flags)).refuses(ask)

    def how(self, flags: frozenset[str]) -> OrtBuild:
        return OrtBuild(
            self.opset,
            self.calibration,
            self.per_channel,
            self.quantizer,
            self.pack_zeros and self.provider == "cpu",
            host.saturates(flags),
        )

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def build(self, source: Source, folder: Path) -> Built:
        model = folder / "model.onnx"
        executed, reference = self.how(source.flags).write(source, model)
        if self.provider != "cpu":
            executed = elsewhere(model, source.numerics.default, self.provider)
        return Built(executed, reference)

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        return predictor(session_of(folder / "model.onnx", threads, self.provider), signature)


def elsewhere(model: Path, precision: str, provider: str) -> dict[str, Any]:
    """What the file holds for another provider, which writes no optimised graph to look at."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    layers = [node for node in every_node(graph) if node.op_type in FLOAT_KERNELS]
    name = PROVIDERS[provider][0]
    return {"precision": precision, "provider": name, "detail": f"{listed(layers)} in {precision} by {name}"}
