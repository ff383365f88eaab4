"""An ONNX file without what is known anyway says the same: answers to the bit, kernels, names of layers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from karui.graph.onnx_lean import lean

QUANTIZED = """<ir_version: 10, opset_import: ["": 20]>
net (float[n, 3, 12, 12] images) => (float[n, 8, 6, 6] y) {
    images_q = QuantizeLinear (images, images_scale, images_zero)
    images_d = DequantizeLinear (images_q, images_scale, images_zero)
    first_w = DequantizeLinear <axis = 0> (first_weight, first_scale, first_zero)
    first_b = DequantizeLinear <axis = 0> (first_bias, first_bias_scale, first_bias_zero)
    first = Conv <group = 1, auto_pad = "NOTSET", dilations = [1, 1], strides = [2, 2],
                  pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (images_d, first_w, first_b)
    first_q = QuantizeLinear (first, first_out_scale, images_zero)
    first_d = DequantizeLinear (first_q, first_out_scale, images_zero)
    second_w = DequantizeLinear <axis = 0> (second_weight, second_scale, second_zero)
    second_b = DequantizeLinear <axis = 0> (second_bias, second_bias_scale, second_bias_zero)
    second = Conv <pads = [0, 0, 0, 0], kernel_shape = [1, 1]> (first_d, second_w, second_b)
    second_q = QuantizeLinear (second, second_out_scale, images_zero)
    y = DequantizeLinear (second_q, second_out_scale, images_zero)
}"""


@pytest.fixture
def quantized(tmp_path):
    """Two INT8 convolutions as a quantizer writes them, with every shape."""
    rng, model = np.random.default_rng(0), parser.parse_model(QUANTIZED)
    steps = {"images_scale": 1 / 255, "first_out_scale": 0.1, "second_out_scale": 0.2}
    tensors = {name: np.float32(step) for name, step in steps.items()} | {"images_zero": np.uint8(128)}
    for name, shape, step in (("first", (8, 3, 3, 3), 1 / 255), ("second", (8, 8, 1, 1), 0.1)):
        scale = rng.uniform(0.01, 0.02, 8).astype(np.float32)
        tensors |= {
            f"{name}_weight": rng.integers(-127, 128, shape).astype(np.int8),
            f"{name}_scale": scale,
            f"{name}_zero": np.zeros(8, np.int8),
            f"{name}_bias": rng.integers(-999, 999, 8).astype(np.int32),
            f"{name}_bias_scale": (scale * np.float32(step)),
            f"{name}_bias_zero": np.zeros(8, np.int32),
        }
    for node in model.graph.node:
        node.name = f"{node.output[0]}/{node.op_type}"
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in tensors.items())
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def opened(path):
    """Answers to fixed images, the kernels, and the file itself."""
    options, optimised = ort.SessionOptions(), path.with_name("optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(optimised), 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).random((5, 3, 12, 12), np.float32) - 0.5
    [found] = session.run(None, {"images": images})
    return found, Counter(node.op_type for node in onnx.load(optimised).graph.node), onnx.load(path)


def test_answers_kernels_and_names_of_layers_stay_and_the_file_shrinks(quantized):
    answers, kernels, before = opened(quantized)
    gained, size = lean(quantized), quantized.stat().st_size
    onnx.checker.check_model(str(quantized), full_check=True)
    same, again, after = opened(quantized)
    assert kernels["QLinearConv"] == 2 and again == kernels
    assert same.tobytes() == answers.tobytes()
    assert gained == before.ByteSize() - size > 0.4 * before.ByteSize()
    assert not after.graph.value_info
    kept = {node.name for node in after.graph.node} - {""}
    assert kept == {"first/Conv", "second/Conv"}
    stored = {one.name for one in after.graph.initializer}
    assert {"first_weight", "second_weight", "first_bias", "second_bias"} <= stored
    assert (after.graph.input, after.graph.output) == (before.graph.input, before.graph.output)
    first = next(node for node in after.graph.node if node.name == "first/Conv")
    assert {one.name for one in first.attribute} == {"strides", "pads", "kernel_shape"}


def test_twice_is_once(quantized):
    lean(quantized)
    once = quantized.read_bytes()
    lean(quantized)
    assert quantized.read_bytes() == once


def test_branches_keep_what_they_read_from_outside(tmp_path):
    path = tmp_path / "model.onnx"
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[n, 4] x) => (float[n, 4] y) {
        total = ReduceSum <keepdims = 0> (x)
        zero = Constant <value = float {0.0}> ()
        positive = Greater (total, zero)
        scale = Constant <value = float {0.5}> ()
        quantized = QuantizeLinear (x, scale)
        near = DequantizeLinear (quantized, scale)
        y = If (positive) <
            then_branch = up () => (float[n, 4] a) { a = Add (near, near) },
            else_branch = down () => (float[n, 4] b) { b = Neg (near) }>
    }"""
    onnx.save(parser.parse_model(text), path)
    inputs = [np.full((2, 4), value, np.float32) for value in (3.3, -3.3)]

    def answers():
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [session.run(None, {"x": one})[0].tolist() for one in inputs]

    before = answers()
    lean(path)
    assert answers() == before


def test_a_file_with_weights_beside_it_stays(tmp_path):
    weight = numpy_helper.from_array(np.ones((40, 40), np.float32), "w")
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> net (float[n, 40] x) => (float[n, 40] y) '
        "{ y = Gemm <alpha = 1.0> (x, w) }"
    )
    model.graph.initializer.append(weight)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="model.onnx.data")
    before = path.read_bytes()
    assert lean(path) == 0
    assert path.read_bytes() == before
