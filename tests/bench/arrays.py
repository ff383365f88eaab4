"""A hand-made ONNX artifact and a folder of data, as a run would leave them; no torch needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from karui.artifact import Artifact, Port, Signature, save_artifact
from karui.data import save_arrays

WEIGHT = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def make_artifact(folder: Path, weight: np.ndarray = WEIGHT, width: int = 6) -> Artifact:
    """``x @ weight`` as a plain ONNX file with its manifest."""
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    inputs, outputs = (Port("x", "float32", (None, width)),), (Port("y", "float32", (None, weight.shape[1])),)
    signature = Signature("args", inputs, outputs)
    return save_artifact(Artifact(folder, "fp32@onnxruntime", "onnxruntime", signature))


def make_data(folder: Path, rows: int = 50, batch: int = 1) -> np.ndarray:
    """Writes ``timing`` and ``select``; returns the rows of the latter."""
    x = np.random.default_rng(1).standard_normal((rows, 6)).astype(np.float32)
    save_arrays({"x": x[:batch]}, folder / "timing")
    save_arrays({"x": x}, folder / "select")
    return x
