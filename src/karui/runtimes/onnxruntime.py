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
from karui.graph.weights.options import BLOCKS, Packing, Writing
from karui.numerics import WEIGHT_BITS, Calibration
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

    Of weights in 8 or 4 bits (calibration is ``minmax`` or ``mse`` there): ``group``, ``symmetric`` and
    ``rounding`` (graph/weights/options); form: nbits keeps them packed and multiplies by them, dequantize is
    plain ONNX (opset 21) that is unpacked when it is opened; accuracy_level 4 rounds activations to 8 bits at
    each call.
    """

    opset: int = OPSET
    calibration: Calibration = "minmax"
    per_channel: bool = True
    quantizer: Literal["karui", "onnxruntime"] = "karui"
    pack_zeros: bool = True
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    group: Literal[16, 32, 64, 128] = 64
    symmetric: bool = False
    rounding: Literal["gptq", "nearest"] | None = None
    form: Literal["nbits", "dequantize"] = "nbits"
    accuracy_level: Literal[0, 4] = 0

    WHERE = frozenset({"provider"})

    def refuses(self, ask: Ask) -> str | None:
        precision = ask.numerics.default
        reason = refuses_provider(self.provider, precision) or self.refuses_form(precision)
        return reason or self.how(frozenset(ask.flags)).refuses(ask)

    def refuses_form(self, precision: str) -> str | None:
        if self.form == "nbits":
            return None
        if precision not in WEIGHT_BITS:
            return f"form={self.form} is of int8_weights and int4_weights"
        if self.accuracy_level:
            return "accuracy_level is of products with packed weights: form=nbits"
        return (
            None
            if self.opset >= BLOCKS
            else f"ONNX knows blocks of weights from opset {BLOCKS} on: opset={BLOCKS}"
        )

    def how(self, flags: frozenset[str]) -> OrtBuild:
        return OrtBuild(
            self.opset,
            self.calibration,
            self.per_channel,
            self.quantizer,
            self.pack_zeros and self.provider == "cpu",
            host.saturates(flags),
            Packing(self.group, self.symmetric, self.calibration, self.rounding),
            Writing(self.form, self.accuracy_level),
        )

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def build(self, source: Source, folder: Path) -> Built:
        model = folder / "model.onnx"
        executed, reference = self.how(source.flags).write(source, model)
        if self.provider != "cpu":
            kept = {key: executed[key] for key in ("fallback",) if key in executed}
            executed = elsewhere(model, source.numerics.default, self.provider) | kept
        return Built(executed, reference)

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        return predictor(
            session_of(folder / "model.onnx", threads, self.provider, unpacked=self.form == "dequantize"),
            signature,
        )


def elsewhere(model: Path, precision: str, provider: str) -> dict[str, Any]:
    """What the file holds for another provider, which writes no optimised graph to look at."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    layers = [node for node in every_node(graph) if node.op_type in FLOAT_KERNELS]
    name = PROVIDERS[provider][0]
    return {"precision": precision, "provider": name, "detail": f"{listed(layers)} in {precision} by {name}"}
