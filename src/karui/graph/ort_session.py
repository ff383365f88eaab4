"""An ONNX file open in ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # see karui.runtimes.onnxruntime
import onnxruntime as ort

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.runtimes import Predict


def session_of(model: Path, threads: int) -> Any:
    return ort.InferenceSession(str(model), options_for(threads), providers=["CPUExecutionProvider"])


def options_for(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    if threads > 1:  # idle threads must not burn the cores of the next runtime in the round
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def predictor(session: Any, signature: Signature) -> Predict:
    """Inputs and outputs go by their order, so that the file's own names may differ."""
    mine = [port.name for port in signature.inputs]
    pairs = list(zip((node.name for node in session.get_inputs()), mine, strict=True))
    outputs = [node.name for node in session.get_outputs()]

    def predict(arrays: Arrays) -> list[Array]:
        found: list[Array] = session.run(outputs, {theirs: arrays[name] for theirs, name in pairs})
        return found

    return predict
