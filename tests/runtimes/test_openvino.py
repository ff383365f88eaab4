"""OpenVINO: the precision is pinned, INT8 is right at every batch, nothing is sent anywhere."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from tests.runtimes.onnx_nets import NAMES, ROWS, cosine, far, rows, shared

from karui import host, runtimes
from karui.errors import BuildFailed, Unsupported
from karui.graph.onnx import answers
from karui.numerics import PRECISIONS, Numerics, parse_numerics
from karui.recipe import parse_named
from karui.runtimes.openvino import BFLOAT16, Kernel, OpenVino, compiled_from, executed

NAME = "openvino"


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    return shared(tmp_path_factory)


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
    flags = tuple(host.flags())
    asked = runtimes.Ask(Numerics(precision), layers={"Linear": 1}, flags=flags)
    if reason := OpenVino().refuses(asked):
        lacks_bf16 = precision == "bf16" and not BFLOAT16 & set(flags)
        assert lacks_bf16 or precision in ("int8_dynamic", "int8_weights", "int4_weights")
        assert len(reason.split()) > 4
        return
    said = bench.build(NAME, name, precision)[0].executed
    assert said["detail"]
    json.dumps(said)
    if precision == "int8":
        assert said["int8_kernels"] > 0


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_two_calls_are_bit_equal(bench, name, precision):
    predict, inputs = bench.predict(NAME, name, precision), bench.net(name).inputs
    first = predict(inputs)
    assert all(np.array_equal(a, b) for a, b in zip(first, predict(inputs), strict=True))


@pytest.mark.gate
def test_a_compressed_description_answers_the_same_and_weighs_a_fraction(bench, tmp_path):
    net, plain = bench.net("residual"), bench.build(NAME, "residual", "int8")[1]
    packing = OpenVino(compress_xml=True)
    packing.build(net.source(parse_numerics("int8")), tmp_path)
    mine = packing.load(tmp_path, net.signature, 1)(net.inputs)
    theirs = bench.predict(NAME, "residual", "int8")(net.inputs)
    assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert not (tmp_path / "model.xml").exists()
    assert (tmp_path / "model.xml.gz").stat().st_size < 0.2 * (plain / "model.xml").stat().st_size


def test_answers_stay_as_they_are_after_the_next_call(bench):
    predict, inputs = bench.predict(NAME, "mlp"), bench.net("mlp").inputs
    first = predict(rows(inputs, 0, 4))[0]
    before = first.copy()
    predict(rows(inputs, 50, 54))
    assert np.array_equal(first, before)


def test_read_only_and_strided_inputs_are_taken(bench):
    net, predict = bench.net("mlp"), bench.predict(NAME, "mlp")
    frozen = net.inputs["x"].copy()
    frozen.flags.writeable = False
    assert far(predict({"x": frozen})[0], net.outputs[0]) <= 1e-4
    wide = np.repeat(net.inputs["x"], 2, axis=1)
    assert far(predict({"x": wide[:, ::2]})[0], net.outputs[0]) <= 1e-4


@pytest.mark.gate
@pytest.mark.parametrize("name", NAMES)
def test_fp32_is_pinned_when_the_artifact_is_opened(bench, name):
    folder = bench.build(NAME, name)[1]
    assert json.loads((folder / "openvino.json").read_text()) == {"precision_hint": "f32"}
    compiled = compiled_from(folder, 1)
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("LATENCY")
    ran = {op.get_rt_info()["runtimePrecision"].astype(str) for op in compiled.get_runtime_model().get_ops()}
    assert not ran & {"bf16", "f16", "i8"}


def test_a_model_that_runs_in_another_precision_than_asked_is_a_failed_build():
    bf16, f32 = Kernel("FullyConnected", "bf16", ("a",)), Kernel("FullyConnected", "f32", ("b",))
    for asked, kernels in (("fp32", [f32, bf16]), ("fp16", [bf16]), ("bf16", [f32]), ("int8_dynamic", [f32])):
        with pytest.raises(BuildFailed, match="would not run in"):
            executed(kernels, asked, set())
    assert executed([f32, bf16], "bf16", set())["precision"] == "bf16"
    with pytest.raises(BuildFailed, match="no layer of the model would run in INT8"):
        executed([f32], "int8", {"b"})


@pytest.mark.parametrize("name", NAMES)
def test_int8_is_close_to_the_original_and_closer_to_its_fake_quant_reference(bench, name):
    built, _ = bench.build(NAME, name, "int8")
    answered = bench.predict(NAME, name, "int8")(bench.net(name).inputs)
    for mine, original, literal in zip(answered, bench.net(name).outputs, built.reference, strict=True):
        assert len(literal) == ROWS
        assert cosine(mine, original) > 0.99
        assert cosine(mine, literal) > 0.9995


@pytest.mark.gate
@pytest.mark.parametrize("name", NAMES)
def test_int8_answers_in_a_large_batch_are_those_of_each_row_alone(bench, name):
    """NNCF's SmoothQuant gave garbage from row 64 on, on attention models."""
    net, predict = bench.net(name), bench.predict(NAME, name, "int8")
    twice = {key: np.concatenate([array, array, array[:56]]) for key, array in net.inputs.items()}
    large = [output[:ROWS] for output in predict(twice)]
    alone = [
        np.concatenate(parts)
        for parts in zip(*[predict(rows(net.inputs, i, i + 1)) for i in range(ROWS)], strict=True)
    ]
    assert all(far(many, one) <= 0.02 for many, one in zip(large, alone, strict=True))


def test_int8_kernels_are_counted_in_the_compiled_graph(bench):
    said = bench.build(NAME, "cnn", "int8")[0].executed
    assert (said["int8_kernels"], said["float_kernels"], said["fallback"]) == (3, 0, [])
    assert said["detail"] == "Convolution u8 x2, FullyConnected u8 x1"
    attention = bench.build(NAME, "encoder", "int8")[0].executed
    assert attention["int8_kernels"] >= 5


def test_an_lstm_stays_float_in_int8_and_this_is_said(bench):
    said = bench.build(NAME, "lstm", "int8")[0].executed
    assert [(entry["op"], entry["reason"]) for entry in said["fallback"]] == [
        ("RNNSeq", "OpenVINO has no INT8 kernel for it")
    ]


def test_fp16_is_said_to_be_computed_in_fp32_and_is_smaller(bench):
    built, folder = bench.build(NAME, "mlp", "fp16")
    assert built.executed["precision"] == "fp32"
    assert "weights stored in fp16, computed in fp32" in built.executed["detail"]
    plain = bench.build(NAME, "mlp")[1]
    assert (folder / "model.bin").stat().st_size < 0.6 * (plain / "model.bin").stat().st_size


@pytest.mark.parametrize("name", ["mlp", "encoder"])
def test_a_rule_keeps_a_layer_in_fp32(bench, name):
    plain, with_rule = (bench.build(NAME, name, text)[0].executed for text in ("int8", "int8[head=fp32]"))
    assert with_rule["int8_kernels"] == plain["int8_kernels"] - 1
    # on some CPUs a product of attention has no INT8 kernel, with the rule and without
    added = [entry for entry in with_rule["fallback"] if entry not in plain["fallback"]]
    assert [entry["reason"] for entry in added] == ["kept in FP32 by a rule"]
    assert len(with_rule["fallback"]) == len(plain["fallback"]) + 1


def test_a_rule_that_fits_nothing_is_no_silent_success(bench):
    with pytest.raises(Unsupported, match="tail"):
        bench.build(NAME, "mlp", "int8[tail=fp32]")


@pytest.mark.parametrize(
    ("numerics", "facts", "said"),
    [
        ("bf16", {}, "no bfloat16 instructions"),
        ("bf16", {"flags": ("avx512_bf16",)}, None),
        ("bf16", {"flags": ("amx_bf16",)}, None),
        ("int8_dynamic", {}, "dynamically only for language models"),
        ("int8", {"calibrated": False}, "calibration data"),
        ("int8", {"layers": {"Net": 1, "GRU": 1}}, "leaves GRU in float"),
        ("int8[head=bf16]", {}, "not in bf16"),
        ("fp16[head=fp32]", {}, "only INT8 takes rules"),
        ("int8[head=fp32]", {}, None),
        ("int8", {"form": "onnx", "layers": {}}, "quantizer=nncf"),
    ],
)
def test_refusals_cost_nothing_and_say_why(numerics, facts, said):
    answer = OpenVino().refuses(runtimes.Ask(parse_numerics(numerics), **facts))
    assert answer is None if said is None else said in answer


def test_one_calibration_sample_is_enough_to_build(bench, tmp_path):
    built = OpenVino().build(bench.net("cnn").source(Numerics("int8"), calibrate=1), tmp_path)
    assert built.executed["int8_kernels"] == 3


def test_ranges_are_the_extremes_unless_asked_otherwise(bench):
    bench.build(f"{NAME}:calibration=mean,quantizer=nncf", "mlp", "int8")
    inputs, original = bench.net("mlp").inputs, bench.net("mlp").outputs[0]
    clipped = bench.predict(f"{NAME}:calibration=mean,quantizer=nncf", "mlp", "int8")(inputs)[0]
    assert far(bench.predict(NAME, "mlp", "int8")(inputs)[0], original) < far(clipped, original)


def test_shared_weights_work(bench):
    for precision in ("fp32", "int8"):
        answered = bench.predict(NAME, "tied", precision)(bench.net("tied").inputs)
        assert cosine(answered[0], bench.net("tied").outputs[0]) > 0.999


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_model_of_fixed_batch_works(bench, precision):
    net = bench.net("fixed")
    answered = answers(bench.predict(NAME, "fixed", precision), net.inputs, net.signature)
    assert cosine(answered[0], net.outputs[0]) > 0.999


def test_outputs_of_all_dtypes_and_an_output_that_is_an_input(bench):
    net = bench.net("same")
    answered = bench.predict(NAME, "same")(net.inputs)
    assert [output.dtype.name for output in answered] == ["float32", "float32", "int64", "bool"]
    assert all(far(mine, theirs) <= 1e-4 for mine, theirs in zip(answered, net.outputs, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_model_given_as_onnx(bench, precision, tmp_path):
    (tmp_path / "given").mkdir(), (tmp_path / "built").mkdir()
    bench.build(NAME, "cnn")
    kept = bench.net("cnn").folder / "exported-20.onnx"
    (tmp_path / "given" / "model.onnx").write_bytes(kept.read_bytes())
    source = dataclasses.replace(bench.net("cnn").source(Numerics(precision)), folder=tmp_path / "given")
    OpenVino(quantizer="nncf").build(source, tmp_path / "built")
    answered = OpenVino().load(tmp_path / "built", source.signature, 1)(source.probe)
    assert cosine(answered[0], bench.net("cnn").outputs[0]) > 0.99


def test_a_file_cut_short_is_a_failed_build(bench, tmp_path):
    (tmp_path / "given").mkdir(), (tmp_path / "built").mkdir()
    bench.build(NAME, "cnn")
    whole = (bench.net("cnn").folder / "exported-20.onnx").read_bytes()
    (tmp_path / "given" / "model.onnx").write_bytes(whole[: len(whole) // 2])
    source = dataclasses.replace(bench.net("cnn").source(Numerics()), folder=tmp_path / "given")
    with pytest.raises(BuildFailed, match="could not convert"):
        OpenVino().build(source, tmp_path / "built")


DENIED = """
import socket, sys
def denied(*args, **kwargs): print('NETWORK', args, file=sys.stderr); raise OSError('denied')
socket.socket.connect = socket.create_connection = socket.getaddrinfo = denied
"""

LOAD = """
import sys, numpy as np, pathlib
from karui import runtimes
from karui.recipe import parse_named
from karui.artifact import Port, Signature
s = Signature('args', (Port('image', 'float32', (None, 1, 8, 8)),), (Port('o', 'float32', (None, 10)),))
predict = runtimes.load(parse_named('openvino')).load(pathlib.Path(sys.argv[1]), s, 1)
assert predict({'image': np.zeros((3, 1, 8, 8), 'float32')})[0].shape == (3, 10)
print(sorted({'torch', 'onnx', 'nncf', 'sympy', 'openvino_telemetry'} & set(sys.modules)))
"""

BUILD = """
import numpy as np, pathlib, sys
from karui import runtimes
from karui.artifact import Port, Signature
from karui.numerics import Numerics
from karui.runtimes.openvino import OpenVino
s = Signature('args', (Port('x', 'float32', (None, 16)),), (Port('output', 'float32', (None, 5)),))
x = {'x': np.random.default_rng(0).normal(size=(8, 16)).astype('float32')}
folder = pathlib.Path(sys.argv[2])
source = runtimes.Source(pathlib.Path(sys.argv[1]), s, Numerics('int8'), x, x)
OpenVino(quantizer='nncf').build(source, folder)
import nncf.telemetry.wrapper as wrapper
assert not isinstance(wrapper.telemetry, wrapper.NNCFTelemetry)
assert 'openvino_telemetry' not in sys.modules
"""


def in_new_process(code, *args, home):
    """Run ``code`` with no network and an empty home; both must be left alone."""
    home.mkdir()
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DENIED + code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    assert not (home / "intel").exists()
    return done.stdout.strip()


@pytest.mark.gate
def test_opening_an_artifact_loads_no_torch_no_converter_and_sends_nothing(bench, tmp_path):
    folder = bench.build(NAME, "cnn", "int8")[1]
    assert in_new_process(LOAD, folder, home=tmp_path / "home") == "[]"


@pytest.mark.gate
def test_quantizing_sends_nothing_and_prints_nothing(bench, tmp_path):
    (tmp_path / "built").mkdir()
    assert in_new_process(BUILD, bench.net("mlp").folder, tmp_path / "built", home=tmp_path / "home") == ""


def test_the_guard_against_telemetry_can_fail(tmp_path):
    code = "import openvino, time; time.sleep(1)"
    with pytest.raises(AssertionError):
        in_new_process(code, home=tmp_path / "home")


def test_options_come_from_the_recipes_text():
    assert runtimes.load(parse_named("openvino:calibration=mean")) == OpenVino("mean")
    assert not OpenVino().casts_in_torch("bf16")
