"""ONNX Runtime: right numbers, honest precisions, refusals that cost nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from tests.runtimes.onnx_nets import NAMES, ROWS, cosine, far, rows, shared

from karui import runtimes
from karui.errors import BuildFailed, Unsupported
from karui.graph.onnx import answers
from karui.host import saturates
from karui.numerics import PRECISIONS, Numerics, parse_numerics
from karui.recipe import parse_named
from karui.runtimes.onnxruntime import OnnxRuntime

NAME = "onnxruntime"
LAYERS = {
    "cnn": {"Cnn": 1, "Conv2d": 2, "BatchNorm2d": 2, "MaxPool2d": 1, "Linear": 1},
    "mlp": {"Mlp": 1, "Linear": 3, "ReLU": 2},
    "lstm": {"Recurrent": 1, "LSTM": 1, "Linear": 1},
    "encoder": {"Encoder": 1, "TransformerEncoderLayer": 1, "Linear": 3},
    "dict": {"DictInDictOut": 1, "Linear": 3},
}


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    return shared(tmp_path_factory)


def ask(numerics, layers=None, **facts):
    return runtimes.Ask(parse_numerics(numerics), layers=layers or {"Linear": 1}, **facts)


@pytest.mark.parametrize("name", NAMES)
def test_fp32_gives_the_eager_answers_at_every_batch(bench, name):
    net, predict = bench.net(name), bench.predict(NAME, name)
    for batch in (1, 7, 64):
        for mine, theirs in zip(predict(rows(net.inputs, 10, 10 + batch)), net.outputs, strict=True):
            assert mine.dtype == theirs.dtype
            assert far(mine, theirs[10 : 10 + batch]) <= 1e-4


@pytest.mark.gate
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_precision_is_built_or_refused_with_a_reason(bench, name, precision):
    if reason := OnnxRuntime().refuses(ask(precision, LAYERS[name])):
        assert precision in ("bf16", "int8_weights", "int4_weights")
        assert len(reason.split()) > 4
        return
    executed = bench.build(NAME, name, precision)[0].executed
    assert executed["detail"]
    json.dumps(executed)
    if precision.endswith("_weights"):
        assert executed["weight_kernels"] > 0
    elif precision.startswith("int8"):
        assert executed["int8_kernels"] > 0
        assert executed["precision"] == precision


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8_dynamic"])
@pytest.mark.parametrize("name", NAMES)
def test_two_calls_are_bit_equal(bench, name, precision):
    predict, inputs = bench.predict(NAME, name, precision), bench.net(name).inputs
    first = [output.copy() for output in predict(inputs)]
    assert all(np.array_equal(a, b) for a, b in zip(first, predict(inputs), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_int8_is_close_to_the_original_and_closer_to_its_fake_quant_reference(bench, name):
    built, _ = bench.build(NAME, name, "int8")
    answered = bench.predict(NAME, name, "int8")(bench.net(name).inputs)
    for mine, original, literal in zip(answered, bench.net(name).outputs, built.reference, strict=True):
        assert len(literal) == ROWS
        assert cosine(mine, original) > 0.99
        assert cosine(mine, literal) > 0.9995


def test_int8_kernels_are_counted_in_onnx_runtimes_own_graph(bench):
    executed = dict(bench.build(NAME, "cnn", "int8")[0].executed)
    layers = executed.pop("layers")
    assert [one["layer"] for one in layers] == ["conv1", "conv2", "head"]
    assert sum(one["macs"] for one in layers) == pytest.approx(1, abs=1e-3)
    assert all(one["int8"] and one["sqnr_db"] > 20 for one in layers)
    assert executed == {
        "precision": "int8",
        "detail": "QLinearConv x2, QGemm x1",
        "int8_kernels": 3,
        "float_kernels": 0,
        "fallback": [],
        "int8_macs": 1.0,
    }


def test_an_lstm_stays_float_in_static_int8_and_this_is_said(bench):
    executed = bench.build(NAME, "lstm", "int8")[0].executed
    assert executed["detail"] == "QGemm x1; in float: LSTM x1"
    assert [(entry["op"], entry["reason"]) for entry in executed["fallback"]] == [
        ("LSTM", "ONNX Runtime has no static INT8 kernel for it")
    ]
    assert "DynamicQuantizeLSTM x1" in bench.build(NAME, "lstm", "int8_dynamic")[0].executed["detail"]


def test_convolutions_are_never_quantized_dynamically(bench):
    built, folder = bench.build(NAME, "cnn", "int8_dynamic")
    assert [entry["op"] for entry in built.executed["fallback"]] == ["FusedConv", "FusedConv"]
    assert "ConvInteger" not in {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}


def test_fp16_is_said_to_be_computed_in_fp32_and_is_smaller(bench):
    built, folder = bench.build(NAME, "mlp", "fp16")
    assert built.executed["precision"] == "fp32"
    assert "weights stored in fp16, computed in fp32" in built.executed["detail"]
    plain = bench.build(NAME, "mlp")[1]
    assert (folder / "model.onnx").stat().st_size < 0.7 * (plain / "model.onnx").stat().st_size


@pytest.mark.parametrize("precision", ["int8", "int8_dynamic"])
def test_a_rule_keeps_a_layer_in_fp32(bench, precision):
    with_rule = bench.build(NAME, "mlp", f"{precision}[head=fp32]")[0].executed
    assert with_rule["int8_kernels"] == bench.build(NAME, "mlp", precision)[0].executed["int8_kernels"] - 1
    assert [entry["reason"] for entry in with_rule["fallback"]] == ["kept in FP32 by a rule"]


@pytest.mark.gate
def test_a_layer_between_quantized_ones_stays_in_fp32(bench):
    """By itself ONNX Runtime rounds its weights, with one scale for all, and says nothing."""
    built, folder = bench.build(NAME, "cnn", "int8[conv2=fp32]")
    assert built.executed["int8_kernels"] == bench.build(NAME, "cnn", "int8")[0].executed["int8_kernels"] - 1
    assert [entry["node"].partition("/")[0] for entry in built.executed["fallback"]] == ["conv2"]
    stored = {one.name: one.data_type for one in onnx.load(folder / "model.onnx").graph.initializer}
    assert stored["conv2.weight"] == onnx.TensorProto.FLOAT
    with pytest.raises(BuildFailed, match="would run conv2 in INT8 all the same"):
        bench.build(f"{NAME}:quantizer=onnxruntime", "cnn", "int8[conv2=fp32]")


def test_a_rule_that_fits_nothing_is_no_silent_success(bench):
    with pytest.raises(Unsupported, match="tail"):
        bench.build(NAME, "mlp", "int8[tail=fp32]")


def test_a_model_that_would_stay_float_is_a_failed_build(bench):
    with pytest.raises(BuildFailed, match="no layer of the model would run in INT8"):
        bench.build(NAME, "mlp", "int8[*=fp32]")


@pytest.mark.parametrize(
    ("numerics", "facts", "said"),
    [
        ("bf16", {}, "no bfloat16"),
        ("int8", {"calibrated": False}, "calibration data"),
        ("int8[head=bf16]", {}, "not in bf16"),
        ("fp16[head=fp32]", {}, "only INT8 takes rules"),
        ("int8_dynamic", {"layers": {"Net": 1, "Conv2d": 2}}, "no Linear or LSTM layer"),
        ("int8_dynamic", {"layers": {"Net": 1, "GRU": 1}}, "no dynamic GRU kernel"),
        ("int8", {"layers": {"Net": 1, "LSTM": 1}}, "leaves LSTM in float"),
        ("int8_dynamic", {"layers": {"Net": 1, "LSTM": 1}}, None),
        ("int8_dynamic", {"layers": {"Net": 1, "GRU": 1, "Linear": 1}}, None),
        ("int8", {"form": "onnx", "layers": {}}, "quantizer=onnxruntime"),
        ("int8_dynamic", {"form": "onnx", "layers": {}}, None),
    ],
)
def test_refusals_cost_nothing_and_say_why(numerics, facts, said):
    asked = runtimes.Ask(parse_numerics(numerics), **({"layers": {"Linear": 1}} | facts))
    answer = OnnxRuntime().refuses(asked)
    assert answer is None if said is None else said in answer


def test_facts_of_earlier_steps_are_refused():
    asked = runtimes.Ask(Numerics("int8", facts={"ranges": {}}), layers={"Linear": 1})
    assert "ranges" in OnnxRuntime().refuses(asked)


@pytest.mark.parametrize("calibration", ["entropy", "percentile"])
def test_other_calibrations_give_usable_ranges(bench, calibration):
    bench.build(f"{NAME}:calibration={calibration}", "cnn", "int8")
    answered = bench.predict(f"{NAME}:calibration={calibration}", "cnn", "int8")(bench.net("cnn").inputs)
    assert cosine(answered[0], bench.net("cnn").outputs[0]) > 0.95


def test_one_calibration_sample_is_enough_to_build(bench, tmp_path):
    built = OnnxRuntime().build(bench.net("cnn").source(Numerics("int8"), calibrate=1), tmp_path)
    assert built.executed["int8_kernels"] == 3


def test_ranges_cover_every_batch_of_the_calibration_data(bench, tmp_path):
    """A range that forgot a batch would clip: an outlier in the last sample must be inside."""
    net = bench.net("mlp")
    inputs = {"x": net.inputs["x"].copy()}
    inputs["x"][-1] *= 8
    source = dataclasses.replace(net.source(Numerics("int8")), calibrate=inputs)
    OnnxRuntime().build(source, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    scale = next(node.input[1] for node in graph.node if node.input[0] == "x")
    [stored] = [onnx.numpy_helper.to_array(one) for one in graph.initializer if one.name == scale]
    assert stored * 255 >= np.ptp(inputs["x"]) * 0.99


@pytest.mark.parametrize("precision", ["int8", "int8_dynamic"])
def test_shared_weights_are_quantized_for_each_of_their_readers(bench, precision):
    answered = bench.predict(NAME, "tied", precision)(bench.net("tied").inputs)
    assert cosine(answered[0], bench.net("tied").outputs[0]) > 0.999


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_model_of_fixed_batch_works(bench, precision):
    net = bench.net("fixed")
    assert not net.signature.dynamic_batch
    answered = answers(bench.predict(NAME, "fixed", precision), net.inputs, net.signature)
    assert cosine(answered[0], net.outputs[0]) > 0.999


def test_outputs_of_all_dtypes_and_an_output_that_is_an_input(bench):
    net = bench.net("same")
    answered = bench.predict(NAME, "same")(net.inputs)
    assert [output.dtype.name for output in answered] == ["float32", "float32", "int64", "bool"]
    assert all(far(mine, theirs) <= 1e-4 for mine, theirs in zip(answered, net.outputs, strict=True))


def given_as_onnx(bench, name, numerics, folder):
    """The network as if its ONNX file had been given."""
    source = bench.net(name).source(Numerics(numerics))
    (folder / "model.onnx").write_bytes((bench.build(NAME, name)[1] / "model.onnx").read_bytes())
    return dataclasses.replace(source, folder=folder)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_model_given_as_onnx(bench, precision, tmp_path):
    (tmp_path / "given").mkdir(), (tmp_path / "built").mkdir()
    source = given_as_onnx(bench, "cnn", precision, tmp_path / "given")
    OnnxRuntime(quantizer="onnxruntime").build(source, tmp_path / "built")
    answered = OnnxRuntime().load(tmp_path / "built", source.signature, 1)(source.probe)
    assert cosine(answered[0], bench.net("cnn").outputs[0]) > 0.99


def test_an_int8_file_is_not_accepted_as_the_float_model(bench, tmp_path):
    (tmp_path / "given").mkdir(), (tmp_path / "built").mkdir()
    source = given_as_onnx(bench, "cnn", "fp32", tmp_path / "given")
    quantized = bench.build(NAME, "cnn", "int8")[1] / "model.onnx"
    (source.folder / "model.onnx").write_bytes(quantized.read_bytes())
    with pytest.raises(BuildFailed, match="not a float model"):
        OnnxRuntime().build(source, tmp_path / "built")


def test_a_file_cut_short_is_a_failed_build(bench, tmp_path):
    (tmp_path / "given").mkdir(), (tmp_path / "built").mkdir()
    source = given_as_onnx(bench, "cnn", "fp32", tmp_path / "given")
    whole = (source.folder / "model.onnx").read_bytes()
    (source.folder / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BuildFailed, match="cannot open"):
        OnnxRuntime().build(source, tmp_path / "built")


def test_two_threads_give_the_same_answers(bench):
    inputs = bench.net("mlp").inputs
    assert far(bench.predict(NAME, "mlp", threads=2)(inputs)[0], bench.net("mlp").outputs[0]) <= 1e-4


def test_weights_have_seven_bits_where_eight_would_saturate():
    assert saturates(frozenset({"avx2", "avx512f"}))
    assert not saturates(frozenset({"avx2", "avx_vnni"}))
    assert not saturates(frozenset({"avx2", "avx512_vnni"}))
    assert not saturates(frozenset({"asimddp"}))


LOAD = """
import sys, numpy as np, pathlib
from karui import runtimes
from karui.recipe import parse_named
from karui.artifact import Port, Signature
s = Signature('args', (Port('image', 'float32', (None, 1, 8, 8)),), (Port('o', 'float32', (None, 10)),))
predict = runtimes.load(parse_named('onnxruntime')).load(pathlib.Path(sys.argv[1]), s, 1)
assert predict({'image': np.zeros((3, 1, 8, 8), 'float32')})[0].shape == (3, 10)
print(sorted({'torch', 'onnx', 'nncf', 'sympy'} & set(sys.modules)))
"""


@pytest.mark.gate
def test_opening_an_artifact_loads_no_torch_and_no_converter(bench):
    folder = bench.build(NAME, "cnn", "int8")[1]
    command = [sys.executable, "-c", LOAD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_come_from_the_recipes_text():
    made = runtimes.load(parse_named("onnxruntime:opset=18,calibration=entropy,per_channel=false"))
    assert made == OnnxRuntime(18, "entropy", False)
    assert not made.casts_in_torch("fp16")


def test_it_is_imported_with_its_reporting_off(tmp_path):
    """Version 1.31 for Linux writes the file of its reporter at once, where that is on."""
    code = "import karui.runtimes.onnxruntime, os, sys; print(os.listdir(sys.argv[1]))"
    env = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=env | {"TMPDIR": str(tmp_path)}, capture_output=True, check=True)
    assert done.stdout.split() == [b"[]"]
