from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.docs import pages
from tests.runtimes.torch_source import Recurrent, answers_of, cosine, residual, rows_of, source_of
from torch import nn

from karui import demo
from karui.errors import BuildFailed, MissingRuntime, Unsupported
from karui.graph import litert_converter
from karui.numerics import parse_numerics
from karui.recipe import parse_named
from karui.runtimes import Ask, Built, Source, load

pytest.importorskip("ai_edge_litert")
from karui.graph.tflite import kernels  # noqa: E402
from karui.graph.tflite_zeros import pack  # noqa: E402

litert = load(parse_named("litert"))
made_here = pytest.mark.skipif(bool(litert_converter.lacking()), reason=litert_converter.lacking())
ROWS, BATCH = 100, 16


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, *shape), dtype=np.float32)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> tuple[nn.Module, Source]:
    model = residual(rows(1, 8, 8))
    return model, source_of(model, rows(1, 8, 8), tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(net, tmp_path_factory):
    """``made(recipe)``: the artifact's folder and what was told of it, built once."""
    known: dict[str, tuple[Path, Built]] = {}

    def get(recipe: str, batch: int = 1) -> tuple[Path, Built]:
        if recipe not in known:
            folder = tmp_path_factory.mktemp("artifact")
            known[recipe] = folder, build(dataclasses.replace(net[1], batch=batch), recipe, folder)
        return known[recipe]

    return get


def build(source: Source, recipe: str, folder: Path) -> Built:
    numerics, _, runtime = recipe.partition("@")
    asked = dataclasses.replace(source, numerics=parse_numerics(numerics))
    return load(parse_named(runtime or "litert")).build(asked, folder)


def answered(folder: Path, source: Source, count: int = ROWS) -> np.ndarray:
    return litert.load(folder, source.signature, 1)(rows_of(source, count))[0]


def fallen_back(built: Built) -> list[str]:
    return [entry["op"] for entry in built.executed["fallback"]]


@pytest.mark.gate
@made_here
def test_fp32_differs_from_eager_by_less_than_a_ten_thousandth(net, made):
    model, source = net
    folder, built = made("fp32", BATCH)
    assert sorted(file.name for file in folder.iterdir()) == ["model.tflite"]
    wanted = answers_of(model, source)
    assert np.abs(answered(folder, source) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert (built.executed["float_kernels"], built.executed["int8_kernels"]) == (4, 0)
    assert built.executed["delegated"]["CONV_2D"] == 1 and fallen_back(built) == []
    assert built.executed["converter"].startswith("litert-torch 0.10")


@pytest.mark.gate
@made_here
def test_batches_that_are_not_stored_give_the_same_answers(net, made):
    source, (folder, built) = net[1], made("fp32", BATCH)
    assert built.executed["batches"] == [BATCH, 1]
    predict = litert.load(folder, source.signature, 1)
    whole = predict(rows_of(source, ROWS))[0]
    kept = whole.copy()
    for count in (1, 2, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 5):
        np.testing.assert_allclose(predict(rows_of(source, count))[0], whole[:count], atol=1e-6)
    np.testing.assert_array_equal(whole, kept)  # an answer is not overwritten by the next


@pytest.mark.gate
@made_here
def test_int8_is_what_the_table_meant_and_xnnpack_takes_it(net, made):
    source, (folder, built) = net[1], made("int8")
    assert built.executed["int8_macs"] >= 0.95
    assert (built.executed["int8_kernels"], built.executed["float_kernels"]) == (4, 0)
    assert {layer["layer"]: layer["int8"] for layer in built.executed["layers"]} == dict.fromkeys(
        ("stem", "inner", "deep", "head"), True
    )
    assert fallen_back(built) == ["HARD_SWISH"]
    found, reference = answered(folder, source), built.reference[0]
    step = (reference.max() - reference.min()) / 255
    assert np.abs(found - reference).max() <= 1.01 * step  # a value at a half may round either way
    assert (np.abs(found - reference) < 1e-5).mean() > 0.9
    assert cosine(found, answers_of(*net)) > 0.999
    assert not np.array_equal(found, answers_of(*net))


@pytest.mark.gate
@made_here
def test_the_demos_resnet_runs_in_int8_kernels_of_xnnpack_and_loses_no_points(tmp_path):
    arrays, model = demo.load_arrays(), demo.model()
    source = source_of(model, arrays.train_images[:300], tmp_path / "source")
    folder = tmp_path / "artifact"
    folder.mkdir()
    built = build(source, "int8", folder)
    assert built.executed["int8_macs"] >= 0.95
    images, labels = arrays.test_images[:500], arrays.test_labels[:500]
    (name,) = source.calibrate
    found = litert.load(folder, source.signature, 1)({name: images})[0].argmax(1)
    with torch.no_grad():
        wanted = model(torch.tensor(images)).argmax(1).numpy()
    assert (found == labels).mean() >= (wanted == labels).mean() - 0.01


@made_here
def test_what_xnnpack_takes_is_what_an_interpreter_without_it_does_not_hand_over(made, monkeypatch):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from karui.graph import tflite

    file = made("int8")[0] / "model.tflite"
    assert sum(kernel.taken for kernel in tflite.kernels(file)) > 4
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    monkeypatch.setattr(
        tflite.litert,
        "Interpreter",
        lambda path, num_threads: Interpreter(path, experimental_op_resolver_type=plain),
    )
    without = tflite.kernels(file)
    assert not any(kernel.taken for kernel in without)
    assert sum(kernel.is_product and kernel.integers for kernel in without) == 4


@made_here
def test_files_store_integers_and_half_floats_and_name_the_users_modules_only(made):
    files = {recipe: (made(recipe)[0] / "model.tflite").read_bytes() for recipe in ("int8", "fp16")}
    floats = 4 * (8 * 9 + 8 * 8 * 9 + 8 * 9 + 4 * 128)
    assert len(files["int8"]) < 6144 + floats / 4  # the graph, and one of 4 bytes
    assert len(files["fp16"]) < 6144 + floats / 2
    assert b"head;" in files["fp16"]
    assert not [data for data in files.values() if b"Residual" in data or b"karui" in data]


@made_here
def test_fp16_is_stored_and_computed_in_fp32_and_says_so(net, made):
    folder, built = made("fp16")
    assert built.executed["precision"] == "fp32"
    assert "weights stored in fp16, computed in fp32" in built.executed["detail"]
    found, wanted = answered(folder, net[1]), answers_of(*net)
    assert 0 < np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


@made_here
def test_a_rule_keeps_a_layer_in_float(net, made):
    folder, built = made("int8[head=fp32]")
    assert (built.executed["int8_kernels"], built.executed["float_kernels"]) == (3, 1)
    assert [layer["layer"] for layer in built.executed["layers"] if not layer["int8"]] == ["head"]
    assert cosine(answered(folder, net[1]), built.reference[0]) > 0.9999


@made_here
@pytest.mark.parametrize(
    ("recipe", "kernels", "left"),
    [("int8@litert:quantizer=litert", 4, ["HARD_SWISH"]), ("int8_dynamic", 2, ["DEPTHWISE_CONV_2D"])],
)
def test_litert_finds_ranges_itself(net, made, recipe, kernels, left):
    folder, built = made(recipe)
    assert (built.executed["int8_kernels"], built.executed["float_kernels"]) == (kernels, 0)
    assert fallen_back(built) == left and "int8_macs" not in built.executed
    assert cosine(answered(folder, net[1]), built.reference[0]) > 0.999
    assert cosine(answered(folder, net[1]), answers_of(*net)) > 0.999


@made_here
def test_recurrent_layers_are_unrolled(tmp_path):
    torch.manual_seed(0)
    model = Recurrent().eval()
    source = source_of(model, rows(1, 3, 6), tmp_path)
    folder = tmp_path / "artifact"
    folder.mkdir()
    built = build(source, "fp32", folder)
    assert built.executed["delegated"]["TANH"] == 2 * 3  # of each time step
    wanted = answers_of(model, source)
    assert np.abs(answered(folder, source, 8) - wanted[:8]).max() <= 1e-4 * np.abs(wanted).max()


PLAIN = """
import sys
sys.modules["karui"] = sys.modules["torch"] = None
import numpy as np
x = np.load(sys.argv[1])
{page}
np.save(sys.argv[2], y)
"""


@pytest.mark.gate
@made_here
def test_the_file_opens_without_karui_as_its_page_says(net, made, tmp_path):
    source, (folder, _) = net[1], made("int8")
    given, out = tmp_path / "rows.npy", tmp_path / "out.npy"
    np.save(given, rows(1, 8, 8)[:1])
    (snippet,) = pages.blocks(pages.ROOT / "docs" / "runtimes" / "litert.md", "python")
    command = [sys.executable, "-c", PLAIN.replace("{page}", snippet), given, out]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=bare)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(out), answered(folder, source, 1))


OPENED = """
import json, sys
from pathlib import Path
from karui.artifact import read_signature
from karui.runtimes.litert import LiteRt
LiteRt().load(Path(sys.argv[1]), read_signature(json.loads(sys.argv[2])), 1)
print("torch" in sys.modules)
"""


@made_here
def test_to_open_a_file_takes_no_torch(net, made):
    signature = json.dumps(dataclasses.asdict(net[1].signature))
    command = [sys.executable, "-c", OPENED, made("int8")[0], signature]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.gate
def test_without_its_converter_it_refuses_and_names_the_command(net, tmp_path, monkeypatch):
    monkeypatch.delenv("KARUI_LITERT_PYTHON", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    wanted = f"python3 -m venv {tmp_path}/.venv-litert && {tmp_path}/.venv-litert/bin/pip install torch=="
    assert wanted in litert.lacks() and asked("fp32") is None
    with pytest.raises(MissingRuntime) as error:
        build(net[1], "fp32", tmp_path)
    assert wanted in error.value.fix
    assert "no bfloat16" in asked("bf16")
    monkeypatch.setenv("KARUI_LITERT_PYTHON", str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in litert.lacks()
    monkeypatch.setenv("KARUI_LITERT_PYTHON", sys.executable)
    assert litert.lacks() == "" and litert_converter.python() == sys.executable


@pytest.mark.gate
@made_here
def test_zeros_are_packed_and_answers_and_kernels_stay(net, made, tmp_path):
    """Both signatures read the same packed matrix; a file without zeros, or in INT8, is left as it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 128)).eval()
    with torch.no_grad():
        model[3].weight[torch.rand_like(model[3].weight) < 0.95] = 0
    source = dataclasses.replace(source_of(model, rows(1, 8, 8), tmp_path), batch=4)
    (tmp_path / "dense").mkdir()
    built = build(source, "fp32@litert:pack_zeros=false", tmp_path / "dense")
    shutil.copytree(tmp_path / "dense", tmp_path / "packed")
    dense, file = tmp_path / "dense" / "model.tflite", tmp_path / "packed" / "model.tflite"
    assert "zeros_saved_bytes" not in built.executed
    saved = pack(file)
    assert saved == dense.stat().st_size - file.stat().st_size > 0.8 * 4 * 576 * 128
    np.testing.assert_array_equal(answered(file.parent, source), answered(dense.parent, source))
    assert [(k.name, k.taken) for k in kernels(file)] == [(k.name, k.taken) for k in kernels(dense)]
    for path in (file, made("fp32", BATCH)[0] / "model.tflite", made("int8")[0] / "model.tflite"):
        before = path.read_bytes()
        assert pack(path) == 0 and path.read_bytes() == before


def test_a_missing_interpreter_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "karui.runtimes.litert", raising=False)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingRuntime, match=r"pip install 'karui\[litert\]'"):
        load(parse_named("litert"))


def asked(recipe: str, **facts) -> str | None:
    numerics, _, runtime = recipe.partition("@")
    ask = Ask(parse_numerics(numerics), **({"layers": {"Linear": 1}} | facts))
    return load(parse_named(runtime or "litert")).refuses(ask)


@made_here
def test_what_is_refused_before_it_costs_a_trial(net, tmp_path):
    assert [asked(p) for p in ("fp32", "fp16", "int8", "int8_dynamic", "int8[a=fp32]")] == [None] * 5
    assert "bfloat16" in asked("bf16")
    assert "calibration" in asked("int8", calibrated=False)
    assert asked("int8_dynamic", calibrated=False) is None
    assert "LSTM" in asked("int8", layers={"LSTM": 1})
    assert asked("int8_dynamic", layers={"LSTM": 1}) is None
    assert "ONNX" in asked("fp32", form="onnx")
    assert "rules" in asked("fp32[a=int8]") and "rules" in asked("int8_dynamic[a=fp32]")
    assert "rules" in asked("int8[a=fp32]@litert:quantizer=litert")
    with pytest.raises(Unsupported, match="tail"):
        build(net[1], "int8[tail=fp32]", tmp_path)


class Foreign(nn.Module):
    """What LiteRT has no operation for: (n, 3, 3) -> (n, 3)"""

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(matrix)


@pytest.mark.gate
@made_here
def test_what_the_converter_cannot_take_is_a_build_that_failed_with_its_reason(tmp_path):
    source = source_of(Foreign(), rows(3, 3), tmp_path)
    folder = tmp_path / "artifact"
    folder.mkdir()
    with pytest.raises(BuildFailed, match="converter could not take") as error:
        build(source, "fp32", folder)
    assert "eigh" in error.value.why
