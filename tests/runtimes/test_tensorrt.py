"""TensorRT without TensorRT: files that keep its rules, computed as written, with scripts for a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.runtimes.onnx_nets import cosine, far, rows, shared

from karui.artifact import ON_GPU
from karui.errors import BuildFailed, KaruiError, Unsupported
from karui.graph.ort_session import session_of
from karui.graph.ranges.table import Range, Table, save_table
from karui.graph.tensorrt.rules import violations
from karui.numerics import Numerics, parse_numerics
from karui.recipe import parse_named
from karui.runtimes import Ask, load

KINDS = ("cnn", "residual", "depthwise", "encoder", "lstm")
LIMITS = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 0.05}
# Of trtexec in TensorRT 11.1 (samples/common/sampleOptions.cpp of github.com/NVIDIA/TensorRT).
FLAGS = {
    "--onnx", "--saveEngine", "--memPoolSize", "--noTF32", "--skipInference", "--sparsity",
    "--minShapes", "--optShapes", "--maxShapes",
}  # fmt: skip
REMOVED = ("--workspace", "--fp16", "--int8", "--bf16", "--best", "--calib", "--buildOnly", "--explicitBatch")
tensorrt = load(parse_named("tensorrt"))
here = not tensorrt.stands_in()
without = pytest.mark.skipif(here, reason="TensorRT and a GPU are here, and used")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return shared(tmp_path_factory)


def file_of(bench, kind: str, numerics: str, options: str = "") -> tuple[Path, dict]:
    built, folder = bench.build(f"tensorrt{options}", kind, numerics)
    return folder, dict(built.executed)


@pytest.mark.gate
@without
@pytest.mark.parametrize("kind", KINDS)
def test_files_keep_the_rules_and_answer_as_the_model_does(kind, bench):
    net = bench.net(kind)
    for numerics in ("fp32", "fp16", "int8"):
        folder, facts = file_of(bench, kind, numerics)
        model = onnx.load(str(folder / "model.onnx"))
        assert [str(one) for one in violations(model)] == []
        answers = bench.predict("tensorrt", kind, numerics)(net.inputs)
        for mine, theirs in zip(answers, net.outputs, strict=True):
            if numerics == "int8":
                assert cosine(mine, theirs) > 0.99
            else:
                assert far(mine, theirs) < LIMITS[numerics]
        assert facts["precision"] == numerics and numerics in facts["detail"]
        assert {file.name for file in folder.iterdir()} >= {"model.onnx", *ON_GPU[:4]}


@pytest.mark.gate
@without
def test_int8_is_stored_in_8_bits_and_covers_what_the_table_says(bench):
    folder, facts = file_of(bench, "residual", "int8")
    model = onnx.load(str(folder / "model.onnx"))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert set(kinds.values()) == {onnx.TensorProto.INT8}  # weights; biases and scales are vectors
    assert facts["int8_macs"] == 1.0 and facts["int8_layers"] == 4 and facts["float_layers"] == 0
    built, _ = bench.build("tensorrt", "residual", "int8")
    net = bench.net("residual")
    assert cosine(bench.predict("tensorrt", "residual", "int8")(net.inputs)[0], built.reference[0]) > 0.9999


@without
def test_recurrent_layers_stay_in_float_and_the_row_says_so(bench):
    facts = file_of(bench, "lstm", "int8")[1]
    assert facts["detail"] == "Gemm x1 in int8; LSTM x1 in fp32"
    assert (facts["int8_layers"], facts["float_layers"]) == (1, 1)


@pytest.mark.gate
@without
@pytest.mark.parametrize("kind", ["cnn", "lstm"])
def test_bfloat16_stands_in_the_file(kind, bench):
    """And what stands in for the GPU rounds every result: it is as far from FP32 as eight bits are."""
    net = bench.net(kind)
    folder, _ = file_of(bench, kind, "bf16", ":opset=22")
    model = onnx.load(str(folder / "model.onnx"))
    stored = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert stored == {onnx.TensorProto.BFLOAT16} and violations(model) == []
    found = bench.predict("tensorrt:opset=22", kind, "bf16")(net.inputs)[0]
    assert found.dtype == np.float32
    assert 1e-3 < far(found, net.outputs[0]) < LIMITS["bf16"]


@without
def test_the_quantizer_of_onnx_runtime_keeps_the_rules_too(bench):
    for kind in ("cnn", "encoder"):
        folder, facts = file_of(bench, kind, "int8", ":quantizer=onnxruntime")
        assert violations(onnx.load(str(folder / "model.onnx"))) == []
        assert facts["int8_layers"] >= 3
        net = bench.net(kind)
        answers = bench.predict("tensorrt:quantizer=onnxruntime", kind, "int8")(net.inputs)
        assert cosine(answers[0], net.outputs[0]) > 0.99


@pytest.mark.gate
def test_files_for_onnx_runtime_are_told_apart(bench):
    """Unsigned activations, integer biases and dynamic ranges are right for a CPU and refused here."""
    for numerics, wanted in (
        ("int8", {"a zero point of type UINT8", "a bias of 32-bit integers"}),
        ("int8_dynamic", {"ranges found at run time (DynamicQuantizeLinear)"}),
    ):
        folder = bench.build("onnxruntime", "mlp", numerics)[1]
        assert wanted <= {one.what for one in violations(onnx.load(str(folder / "model.onnx")))}


@without
def test_a_file_that_breaks_a_rule_is_not_opened(bench, tmp_path):
    """The word rule-checked is earned at each opening, not remembered from the build."""
    folder = file_of(bench, "cnn", "int8")[0]
    copy = tmp_path / "artifact"
    shutil.copytree(folder, copy)
    model = onnx.load(str(copy / "model.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale") and len(tensor.dims) == 0:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(-1), tensor.name))
    onnx.save(model, str(copy / "model.onnx"))
    with pytest.raises(BuildFailed, match="TensorRT would not take the file"):
        tensorrt.load(copy, bench.net("cnn").signature, 1)


@pytest.mark.gate
@without
@pytest.mark.parametrize(("kind", "numerics", "options"), [("cnn", "int8", ""), ("fixed", "fp32", "")])
def test_the_script_parses_and_has_current_flags_only(kind, numerics, options, bench):
    folder = file_of(bench, kind, numerics, options)[0]
    script = folder / "build_engine.sh"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert os.access(script, os.X_OK)
    command = next(line for line in script.read_text().splitlines() if line.startswith("exec trtexec"))
    used = re.findall(r"--\w+", command)
    assert set(used) <= FLAGS and {"--onnx", "--saveEngine", "--memPoolSize", "--noTF32"} <= set(used)
    assert not [flag for flag in REMOVED if flag in used]
    assert re.search(r"--memPoolSize=workspace:\d+ ", command) and "--sparsity" not in command
    assert "--stronglyTyped" in script.read_text() and "--stronglyTyped" not in command
    shapes = {flag: f"--{flag}Shapes=" in command for flag in ("min", "opt", "max")}
    assert set(shapes.values()) == {kind != "fixed"}
    if kind == "cnn":
        assert "--minShapes=image:1x1x8x8" in command and "--maxShapes=image:256x1x8x8" in command


@without
def test_the_script_runs_trtexec_with_these_words(bench, tmp_path):
    """What stands in for trtexec prints its words: the shell passes them on whole."""
    stand_in = tmp_path / "trtexec"
    stand_in.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    folder = file_of(bench, "dict", "fp32")[0]
    done = subprocess.run(
        [str(folder / "build_engine.sh"), "--verbose"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    home, *words = done.stdout.splitlines()
    assert Path(home).samefile(folder) and words[-1] == "--verbose"
    assert "--optShapes=left:1x6,right:1x4" in words


STAND_IN = """
import sys, types, numpy as np, onnxruntime as real
sys.modules["karui"] = sys.modules["torch"] = None
script, wrong, provider = sys.argv[1], float(sys.argv[2]), sys.argv[3]
class Session:
    def __init__(self, path, providers):
        assert providers == ["CUDAExecutionProvider"]
        self.real = real.InferenceSession(path, providers=["CPUExecutionProvider"])
    def get_providers(self): return [provider]
    def get_outputs(self): return self.real.get_outputs()
    def run(self, names, inputs): return [answer + wrong for answer in self.real.run(names, inputs)]
sys.modules["onnxruntime"] = types.SimpleNamespace(
    InferenceSession=Session, get_available_providers=lambda: ["CUDAExecutionProvider"])
sys.argv = [script, "onnxruntime-cuda"]
exec(compile(open(script).read(), script, "exec"), {"__file__": script, "__name__": "__main__"})
"""


@pytest.mark.parametrize(
    ("wrong", "provider", "code", "said"),
    [
        (0.0, "CUDAExecutionProvider", 0, "ms a call of 8 rows, int8"),
        (9.0, "CUDAExecutionProvider", 1, "TOO FAR"),
        (0.0, "CPUExecutionProvider", 2, "fell back to CPUExecutionProvider"),
    ],
)
@without
def test_the_check_runs_without_karui_and_tells_right_from_wrong(bench, wrong, provider, code, said):
    """There is no GPU: ONNX Runtime's CPU answers in its place, right, wrong, or as what it is."""
    script = file_of(bench, "cnn", "int8")[0] / "verify_on_gpu.py"
    words = [sys.executable, "-c", STAND_IN, str(script), str(wrong), provider]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout + done.stderr


@pytest.mark.gate
@without
@pytest.mark.parametrize("how", ["onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"])
def test_the_check_stops_where_there_is_no_gpu(bench, how):
    """The script itself, with the packages that are here: nothing is computed on the CPU instead."""
    script = file_of(bench, "cnn", "fp16")[0] / "verify_on_gpu.py"
    done = subprocess.run([sys.executable, str(script), how], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert "GPU" in done.stderr or "onnxruntime-gpu" in done.stderr


@without
def test_rows_for_the_check_are_the_models(bench):
    net, folder = bench.net("encoder"), file_of(bench, "encoder", "fp16")[0]
    stored = np.load(folder / "verify_on_gpu.npz", allow_pickle=False)
    (name,) = (port.name for port in net.signature.outputs)
    np.testing.assert_allclose(stored[f"original/{name}"], net.outputs[0][:8], rtol=1e-4, atol=1e-5)
    assert far(stored[f"reference/{name}"], net.outputs[0][:8]) > 1e-6
    settings = json.loads((folder / "engine.json").read_text())
    assert settings == {"precision": "fp16", "batch": 1, "largest": 256, "sparse": False, "limit": 0.05}


@pytest.mark.gate
@without
def test_two_of_four_zeros_bring_the_flag_and_others_do_not(bench, tmp_path):
    """Half of the deep kernels' input channels, two of every four; the stem has one channel and cannot."""
    net = bench.net("residual")
    source = net.source(parse_numerics("fp16"))
    program = torch.export.load(source.folder / "model.pt2")
    for name, weight in program.state_dict.items():
        if name.endswith(("one.weight", "two.weight")):
            weight.data[:, 1::4] = weight.data[:, 2::4] = 0
    (tmp_path / "source").mkdir()
    torch.export.save(program, tmp_path / "source" / "model.pt2")
    (tmp_path / "built").mkdir()
    zeros = dataclasses.replace(source, folder=tmp_path / "source")
    facts = tensorrt.build(zeros, tmp_path / "built").executed
    assert (facts["sparse_layers"], facts["sparse_layers_of"]) == (2, 3)
    assert "2:4 zeros in 2 layers" in facts["detail"]
    assert "--sparsity=enable" in (tmp_path / "built" / "build_engine.sh").read_text()
    assert json.loads((tmp_path / "built" / "engine.json").read_text())["sparse"] is True
    dense = file_of(bench, "residual", "fp16")
    assert dense[1]["sparse_layers"] == 0
    assert "--sparsity" not in (dense[0] / "build_engine.sh").read_text()


@without
def test_a_model_given_as_onnx_keeps_its_own_names(bench, tmp_path):
    net = bench.net("cnn")
    given = onnx.load(str(file_of(bench, "cnn", "fp32")[0] / "model.onnx"))
    for node in given.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = {"image": "pixels"}.get(name, name)
    given.graph.input[0].name = "pixels"
    (tmp_path / "source").mkdir()
    onnx.save(given, str(tmp_path / "source" / "model.onnx"))
    source = dataclasses.replace(net.source(Numerics("fp16")), folder=tmp_path / "source")
    folder = tmp_path / "built"
    folder.mkdir()
    assert tensorrt.refuses(Ask(Numerics("fp16"), form="onnx")) is None
    tensorrt.build(source, folder)
    assert far(tensorrt.load(folder, net.signature, 1)(net.inputs)[0], net.outputs[0]) < LIMITS["fp16"]
    assert "--minShapes=pixels:1x1x8x8" in (folder / "build_engine.sh").read_text()
    assert "input/pixels" in np.load(folder / "verify_on_gpu.npz", allow_pickle=False).files


def test_what_is_refused_before_it_costs_a_trial():
    words = ("fp32", "fp16", "int8", "bf16", "int8_dynamic", "int8_weights")
    said = {word: tensorrt.refuses(Ask(Numerics(word))) for word in words}
    assert [said[word] for word in ("fp32", "fp16", "int8")] == [None] * 3
    assert "opset=22" in said["bf16"] and "constant scales" in said["int8_dynamic"]
    assert "arithmetic in float" in said["int8_weights"]
    assert load(parse_named("tensorrt:opset=22")).refuses(Ask(Numerics("bf16"))) is None
    assert "largest=512" in tensorrt.refuses(Ask(Numerics(), batch=512))
    assert "quantizer=onnxruntime" in tensorrt.refuses(Ask(Numerics("int8"), form="onnx"))
    assert "calibration data" in tensorrt.refuses(Ask(Numerics("int8"), calibrated=False))
    assert "LSTM" in tensorrt.refuses(Ask(Numerics("int8"), layers={"LSTM": 1}))
    assert tensorrt.refuses(Ask(parse_numerics("int8[head=fp32]"))) is None


@without
def test_why_it_cannot_run_and_what_the_checks_prove():
    assert tensorrt.stands_in().startswith("needs an NVIDIA GPU")
    assert tensorrt.verified_as() == "rule-checked"


@without
def test_ranges_that_steps_have_settled_are_not_dropped(bench, tmp_path):
    settled = tmp_path / "source"
    shutil.copytree(bench.net("mlp").folder, settled)
    save_table(Table({"head.weight": Range(-torch.ones(5), torch.ones(5), 0, 8, "weight", True)}), settled)
    asked = dataclasses.replace(bench.net("mlp").source(Numerics("int8")), folder=settled)
    with pytest.raises(Unsupported, match="settled"):
        load(parse_named("tensorrt:quantizer=onnxruntime")).build(asked, tmp_path)


@without
def test_a_rule_keeps_a_layer_in_float(bench):
    facts = file_of(bench, "mlp", "int8[head=fp32]")[1]
    assert (facts["int8_layers"], facts["float_layers"]) == (2, 1)
    assert 0.5 < facts["int8_macs"] < 1


@pytest.mark.gate
@without
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_refused_and_not_replaced(provider):
    runtime = load(parse_named(f"onnxruntime:provider={provider}"))
    reason = runtime.refuses(Ask(Numerics()))
    assert "ExecutionProvider" in reason and "NVIDIA GPU" in reason and "onnxruntime-gpu" in reason


@without
def test_a_session_on_another_provider_than_asked_is_an_error(bench):
    """ONNX Runtime only warns when it falls back."""
    model = bench.build("onnxruntime", "mlp")[1] / "model.onnx"
    with pytest.warns(UserWarning), pytest.raises(KaruiError, match="CUDAExecutionProvider did not start"):
        session_of(model, 1, "cuda")


needs_gpu = pytest.mark.skipif(not here, reason="needs an NVIDIA GPU, and NVIDIA's package tensorrt")


@needs_gpu
@pytest.mark.parametrize(("numerics", "options"), [("fp32", ""), ("fp16", ""), ("int8", "")])
def test_an_engine_answers_as_the_model_does(numerics, options, bench):
    net = bench.net("cnn")
    predict = bench.predict(f"tensorrt{options}", "cnn", numerics)
    for count in (1, 5, 64):
        found = predict(rows(net.inputs, 0, count))[0]
        assert cosine(found, net.outputs[0][:count]) > 0.99
        if numerics != "int8":
            assert far(found, net.outputs[0][:count]) < 10 * LIMITS[numerics]


@needs_gpu
def test_engines_are_timed_by_events(bench):
    from karui.graph.tensorrt.verify_on_gpu import Engine

    engine = Engine((file_of(bench, "cnn", "fp16")[0] / "model.plan").read_bytes())
    samples = engine.time(rows(bench.net("cnn").inputs, 0, 4), 20)
    assert len(samples) == 20 and min(samples) > 0
