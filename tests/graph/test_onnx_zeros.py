"""Weights of an ONNX file that are mostly one value: packed, they are the same to the last bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from karui.graph.onnx_zeros import pack


def saved(path, weight):
    """A file whose only output is a weight."""
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    out = helper.make_tensor_value_info("y", kind, weight.shape)
    node = helper.make_node("Identity", ["w"], ["y"])
    graph = helper.make_graph([node], "g", [], [out], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def answer(path):
    """What the file holds, once ONNX Runtime has folded everything that puts it together."""
    options, folded = ort.SessionOptions(), path.with_name("folded.onnx")
    options.optimized_model_filepath, options.log_severity_level = str(folded), 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(folded).graph.node] in ([], ["Identity"])
    return session.run(None, {})[0]


def sparse(kind, share, fill, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.integers(1, 100, (40, 20, 3, 3)).astype(kind)
    weight[rng.random(weight.shape) < share] = fill
    return weight


@pytest.mark.gate
@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "uint8"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.999, 1.0])
def test_every_bit_comes_back_and_the_file_shrinks_with_what_is_not_zero(tmp_path, kind, share):
    weight = sparse(kind, share, fill=128 if kind == "uint8" else 0)
    path = saved(tmp_path / "model.onnx", weight)
    before = path.stat().st_size
    gained = pack(path)
    assert gained == before - path.stat().st_size
    assert answer(path).tobytes() == weight.tobytes()
    present = 1 - share
    least = min(weight.itemsize * present + 1 / 8, (weight.itemsize + 1) * (present + 1 / 255))
    assert path.stat().st_size < 1.1 * least * weight.size + 900


def test_odd_numbers_stay_and_both_zeros_are_one(tmp_path):
    weight = sparse("float32", 0.9, fill=0)
    weight[3, 0, 0] = (np.nan, np.inf, -np.inf)
    plain, masked = weight.copy(), weight.copy()
    masked[masked == 0] = np.resize([0.0, -0.0], int((masked == 0).sum()))
    one, other = saved(tmp_path / "one.onnx", plain), saved(tmp_path / "other.onnx", masked)
    assert pack(one) == pack(other) > 0
    assert answer(one).tobytes() == answer(other).tobytes() == weight.tobytes()


@pytest.mark.parametrize("steps", [1, 254, 255, 256, 510, 511, 1000])
def test_places_may_lie_far_apart(tmp_path, steps):
    weight = np.zeros(8000, np.float32)
    weight[steps::steps] = 7.0
    path = saved(tmp_path / "model.onnx", weight)
    pack(path)
    assert answer(path).tobytes() == weight.tobytes()


def test_dense_and_small_weights_and_files_with_nothing_to_gain_stay_as_they_are(tmp_path):
    for name, weight in (("dense", sparse("float32", 0.1, 0)), ("small", np.zeros(200, np.float32))):
        path = saved(tmp_path / f"{name}.onnx", weight)
        before = path.read_bytes()
        assert pack(path) == 0
        assert path.read_bytes() == before
