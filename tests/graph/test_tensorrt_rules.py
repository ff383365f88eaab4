"""Each rule of TensorRT sees what breaks it and says so in words of its own; none sees what is right."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from karui.errors import BuildFailed
from karui.graph.tensorrt.operators import TYPES
from karui.graph.tensorrt.rules import require, violations
from karui.graph.tensorrt.sparsity import two_of_four

GRID = """<ir_version: 10, opset_import: ["" : 20]>
net (float[batch,4,6,6] x) => (float[batch,3] y)
<float one = {0.5}, int8 zero = {0}>
{
  xq = QuantizeLinear (x, one, zero)
  xd = DequantizeLinear (xq, one, zero)
  w = DequantizeLinear <axis = 0> (kernel, steps, zeros)
  seen = Conv <pads = [1,1,1,1]> (xd, w, bias)
  small = GlobalAveragePool (seen)
  plain = Flatten (small)
  pq = QuantizeLinear (plain, one, zero)
  pd = DequantizeLinear (pq, one, zero)
  m = DequantizeLinear <axis = 0> (matrix, rows, rowzeros)
  y = Gemm <transB = 1> (pd, m)
}"""
STORED = {
    "bias": np.zeros(8, np.float32), "kernel": np.ones((8, 4, 3, 3), np.int8), "zeros": np.zeros(8, np.int8),
    "steps": np.full(8, 0.1, np.float32), "matrix": np.ones((3, 8), np.int8),
    "rows": np.full(3, 0.1, np.float32), "rowzeros": np.zeros(3, np.int8),
}  # fmt: skip


def grid():
    """A convolution and a Gemm in INT8 as TensorRT wants them, at the names of the text above."""
    model = parser.parse_model(GRID)
    for name, array in STORED.items():
        store(model, name, array)
    for node in model.graph.node:
        node.name = f"at_{node.output[0]}"
    return model


def small(body: str, inputs="float[batch,4] x", outputs="float[batch,4] y", head='"" : 20'):
    return parser.parse_model(f"<ir_version: 10, opset_import: [{head}]> g ({inputs}) => ({outputs}) {body}")


def node_of(model, output):
    return next(node for node in model.graph.node if output in node.output)


def store(model, name, array):
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(np.asarray(array), name)])


def planted(change):
    model = grid()
    change(model)
    return model


def drop_zero_point(model):
    del node_of(model, "xq").input[2]
    del node_of(model, "xd").input[2]
    store(model, "zero8", np.zeros((), np.uint8))
    node_of(model, "xd").input.append("zero8")


def integer_bias(model):
    store(model, "counts", np.zeros(8, np.int32))
    store(model, "bias_steps", np.full(8, 0.05, np.float32))
    model.graph.node.insert(
        3, helper.make_node("DequantizeLinear", ["counts", "bias_steps"], ["b"], "at_b", axis=0)
    )
    node_of(model, "seen").input[2] = "b"


def unsigned(model):
    store(model, "zero", np.zeros((), np.uint8))


def computed_scale(model):
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["x"], ["top"], "at_top", keepdims=0))
    node_of(model, "xq").input[1] = "top"


def channels_of_an_activation(model):
    store(model, "four", np.full(4, 0.1, np.float32))
    store(model, "four_zeros", np.zeros(4, np.int8))
    for name in ("xq", "xd"):
        node = node_of(model, name)
        node.input[1:3] = ["four", "four_zeros"]
        node.attribute.append(helper.make_attribute("axis", 1))


def wrong_axis(model):
    store(model, "matrix", np.ones((3, 8), np.int8))
    store(model, "rows", np.full(8, 0.1, np.float32))
    store(model, "rowzeros", np.zeros(8, np.int8))
    node_of(model, "m").attribute[0].i = 1


def weight_alone(model):
    node_of(model, "seen").input[0] = "x"


def input_alone(model):
    store(model, "float_matrix", np.ones((3, 8), np.float32))
    node_of(model, "y").input[1] = "float_matrix"


def answer_in_integers(model):
    model.graph.node.append(helper.make_node("QuantizeLinear", ["y", "one", "zero"], ["whole"], "at_whole"))
    model.graph.output.append(helper.make_tensor_value_info("whole", TensorProto.INT8, ["batch", 3]))


def moved_integers(model):
    flat = node_of(model, "plain")
    flat.input[0], flat.output[0] = "sq", "pq"
    flat.name = "at_moved"
    model.graph.node.insert(5, helper.make_node("QuantizeLinear", ["small", "one", "zero"], ["sq"], "at_sq"))
    model.graph.node.remove(next(n for n in model.graph.node if n.name == "at_pq"))


def sparse_weights(model):
    dense = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    model.graph.initializer.remove(dense)
    values = numpy_helper.from_array(np.ones(1, np.float32), "bias")
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8]))


def set_axis(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


PLANTED = {
    "a zero point of type UINT8": (lambda: planted(unsigned), "at_xq"),
    "no zero point": (lambda: planted(drop_zero_point), "at_xq"),
    "a zero point other than 0": (lambda: planted(lambda m: store(m, "zero", np.int8(3))), "at_xq"),
    "a scale that is not positive": (lambda: planted(lambda m: store(m, "one", np.float32(-1))), "at_xq"),
    "a scale that is not finite": (lambda: planted(lambda m: store(m, "one", np.float32("nan"))), "at_xq"),
    "a scale that is computed": (lambda: planted(computed_scale), "at_xq"),
    "a bias of 32-bit integers": (lambda: planted(integer_bias), "at_b"),
    "an activation with a scale of each channel": (lambda: planted(channels_of_an_activation), "at_xq"),
    "scales along axis 1 of the weight of Gemm": (lambda: planted(wrong_axis), "at_m"),
    "Conv with nothing but its weight in INT8": (lambda: planted(weight_alone), "at_seen"),
    "Gemm with nothing but its input in INT8": (lambda: planted(input_alone), "at_y"),
    "a quantized answer": (lambda: planted(answer_in_integers), "at_whole"),
    "Flatten on 8-bit integers": (lambda: planted(moved_integers), "at_moved"),
    "a sparse initializer": (lambda: planted(sparse_weights), "bias"),
    "axis 2 of an input is dynamic": (lambda: planted(set_axis), "x"),
    "ONNX opset 8": (lambda: small("{ y = Relu (x) }", head='"" : 8'), "opset_import"),
    "the operator Det": (
        lambda: small("{ y = Det (x) }", "float[batch,4,4] x", "float[batch] y"), "y",
    ),
    "the operator Sparkle of the domain mine": (
        lambda: small("{ y = mine.Sparkle (x) }", head='"" : 20, "mine" : 1'), "y",
    ),
    "the integer operator MatMulInteger": (
        lambda: small("{ y = MatMulInteger (x, x) }", "int8[4,4] x", "int32[4,4] y"), "y",
    ),
    "ranges found at run time (DynamicQuantizeLinear)": (
        lambda: small("{ q, s, z = DynamicQuantizeLinear (x)\n y = DequantizeLinear (q, s, z) }"), "q",
    ),
    "MatMul on INT64": (
        lambda: small("{ y = MatMul (x, x) }", "int64[4,4] x", "int64[4,4] y"), "y",
    ),
    "64-bit floats": (
        lambda: small("{ d = Cast <to = 11> (x)\n y = Cast <to = 1> (d) }"), "d",
    ),
    "a value of type STRING": (
        lambda: small("{ y = Identity (x) }", "string[batch,4] x", "string[batch,4] y"), "x",
    ),
    "unsigned 8-bit integers inside": (
        lambda: small("{ u = Cast <to = 2> (x)\n y = Cast <to = 1> (u) }"), "u",
    ),
    "MaxPool over one axis": (
        lambda: small(
            "{ y = MaxPool <kernel_shape = [2], strides = [2]> (x) }", "float[b,4,6] x", "float[b,4,3] y"
        ),
        "y",
    ),
    "TopK that is not sorted": (
        lambda: small("<int64[1] k = {2}> { y, i = TopK <sorted = 0> (x, k) }", outputs="float[b,2] y"), "y",
    ),
    "Resize, cubic or with antialiasing": (
        lambda: small(
            '<float[4] s = {1, 1, 2, 2}> { y = Resize <mode = "cubic"> (x, , s) }',
            "float[batch,1,4,4] x", "float[batch,1,8,8] y",
        ),
        "y",
    ),
}  # fmt: skip


def test_what_is_right_breaks_no_rule():
    assert [str(one) for one in violations(grid())] == []
    require(grid())


@pytest.mark.gate
@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_violation_is_named_with_its_place_and_a_way_out(what):
    make, where = PLANTED[what]
    found = violations(make())
    mine = [one for one in found if one.what == what]
    assert mine and where in {one.where for one in mine}, [str(one) for one in found]
    assert all(one.why and one.fix and len(str(one)) < 250 for one in found)
    with pytest.raises(BuildFailed) as error:
        require(make())
    assert what in error.value.why and error.value.fix


def test_types_that_do_not_fit_are_told():
    with pytest.raises(BuildFailed, match="types in the ONNX file do not fit"):
        violations(small("{ i = Cast <to = 6> (x)\n y = Add (x, i) }"))


def test_a_rounded_input_that_serves_others_may_meet_a_float_weight():
    """A layer kept in float beside one in INT8, and one behind a sum that is computed on integers."""
    model = planted(input_alone)
    model.graph.node.append(helper.make_node("Relu", ["pd"], ["r"], "at_r"))
    assert violations(model) == []
    model = planted(input_alone)
    node_of(model, "pq").input[0] = "sum"
    model.graph.node.insert(6, helper.make_node("Add", ["plain", "plain"], ["sum"], "at_sum"))
    assert violations(model) == []


def test_an_error_names_a_few_and_counts_the_rest():
    model = small(" ".join(["{", *(f"d{i} = Det (x)\n" for i in range(9)), "y = Det (x) }"]),
                  "float[batch,4,4] x", "float[batch] y")  # fmt: skip
    with pytest.raises(BuildFailed) as error:
        require(model)
    assert "and 5 more" in error.value.why


def test_the_table_knows_only_operators_of_onnx():
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    own = {"ImageScaler", "ParametricSoftplus", "ScaledTanh", "Scatter", "Upsample"}  # of old opsets
    assert set(TYPES) - known <= own
    assert len(TYPES) > 130 and "QLinearConv" not in TYPES


def zeros_in(matrix: np.ndarray):
    model = grid()
    store(model, "matrix", matrix)
    return two_of_four(model)


def test_two_of_four_is_seen_along_the_input_channels():
    half = np.tile(np.array([1, 0, 0, 1], np.int8), (3, 2))
    assert zeros_in(half) == (["at_seen", "at_y"], ["at_y"])
    assert zeros_in(np.where(np.arange(24).reshape(3, 8) == 1, 1, half).astype(np.int8))[1] == []
    model = grid()
    kernel = np.ones((8, 4, 3, 3), np.int8)
    kernel[:, 1:3] = 0
    store(model, "kernel", kernel)
    assert two_of_four(model)[1] == ["at_seen"]
    kernel[:, 1:3, 0, 0], kernel[5, :, 1, 1] = 0, 1  # one place of one kernel has four
    store(model, "kernel", kernel)
    assert two_of_four(model)[1] == []


def test_facts_are_plain():
    assert json.dumps([one.__dict__ for one in violations(planted(unsigned))])
