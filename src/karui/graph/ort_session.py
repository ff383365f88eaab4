"""ONNX files computed by ONNX Runtime: sessions and calls. For all runtimes that write ONNX."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # see karui.runtimes.onnxruntime
import onnxruntime as ort

from karui.errors import BuildFailed, Unsupported, foreign
from karui.graph.onnx import answers

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array
    from karui.runtimes import Predict, Source

CPU = "CPUExecutionProvider"
PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": (CPU, {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),  # else FP32 products have 10 bits
    "tensorrt": ("TensorrtExecutionProvider", {}),
}


def session_of(model: Path, threads: int, provider: str = "cpu", *, unpacked: bool = False) -> Any:
    """Raises Unsupported where ONNX Runtime would run on something else than ``provider``: it only warns."""
    wanted = PROVIDERS[provider]
    session = ort.InferenceSession(str(model), options_for(threads, unpacked), providers=[wanted])
    if (found := session.get_providers()[0]) != wanted[0]:
        raise Unsupported(f"{wanted[0]} did not start", why=f"ONNX Runtime fell back to {found}")
    return session


def refuses_provider(provider: str, precision: str) -> str | None:
    """Why a provider cannot be had here, or not in ``precision``."""
    name, had = PROVIDERS[provider][0], ort.get_available_providers()
    if name not in had:
        return f"this onnxruntime has no {name}: it takes an NVIDIA GPU and the package onnxruntime-gpu"
    if provider != "cpu" and precision.startswith("int"):
        return f"{name} gets no INT8 files: try int8@tensorrt"
    if provider == "tensorrt" and precision == "fp32" and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        return "TensorRT would multiply FP32 with 10 bits: set NVIDIA_TF32_OVERRIDE=0, or try fp32@tensorrt"
    return None


def options_for(threads: int, unpacked: bool = False) -> Any:
    """unpacked: weights behind DequantizeLinear become float tensors when the file is opened."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    if threads > 1:  # idle threads must not burn the cores of the next runtime in the round
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if unpacked:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def literally(model: Path | bytes, threads: int) -> Any:
    """A session without optimisation: each node as it is written, Q/DQ around float kernels."""
    options = options_for(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=[CPU])


def reference(model: Path, source: Source) -> list[Array]:
    """The fake-quant reference of an INT8 file, on the probe rows of ``source``."""
    with foreign(BuildFailed, "ONNX Runtime does not run the quantized model"):
        predict = predictor(literally(model, source.threads), source.signature)
        return answers(predict, source.probe, source.signature)


def predictor(session: Any, signature: Signature) -> Predict:
    """Inputs and outputs go by their order, so that the file's own names may differ."""
    mine = [port.name for port in signature.inputs]
    pairs = list(zip((node.name for node in session.get_inputs()), mine, strict=True))
    outputs = [node.name for node in session.get_outputs()]

    def predict(arrays: Any) -> list[Array]:
        found: list[Array] = session.run(outputs, {theirs: arrays[name] for theirs, name in pairs})
        return found

    return predict
