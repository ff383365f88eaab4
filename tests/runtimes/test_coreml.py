from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.runtimes.torch_source import answers_of, cosine, rows_of, source_of
from torch import nn

from karui.artifact import CHECK, CHECK_ROWS
from karui.errors import BuildFailed, Unsupported
from karui.graph.mil import OPERATIONS, Package
from karui.graph.ranges.table import Range, Table, save_table
from karui.numerics import parse_numerics
from karui.recipe import parse_named
from karui.runtimes import Ask, Source, load

pytest.importorskip("coremltools")
coreml = load(parse_named("coreml"))
ROWS = 32


class Convolutions(nn.Module):
    """(n, 2, 9, 9) -> (n, 5), with what convolution networks have between their layers"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.deep, self.up = nn.Conv2d(8, 8, 3, padding="same", groups=8), nn.ConvTranspose2d(8, 4, 2, 2)
        self.head = nn.Linear(8 * 4 + 4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.norm(self.stem(image)))
        seen = nn.functional.hardswish(self.deep(seen) + seen)
        small = nn.functional.max_pool2d(seen, 2)
        wide = nn.functional.relu6(self.up(small)).mean((2, 3))
        return self.head(torch.cat([small.flatten(1), nn.functional.silu(wide)], 1))


class Attention(nn.Module):
    """(n, 6, 8) -> (n, 3)"""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(words).mean(1))


class Recurrent(nn.Module):
    """(n, 6, 8) -> (n, 3), two layers, both directions"""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(words)[0][:, 2])


class Perceptron(nn.Module):
    """(n, 8) -> (n, 3)"""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gate, self.head = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        seen = torch.tanh(self.inner(values)) * torch.sigmoid(self.gate(values))
        return torch.softmax(self.head(nn.functional.leaky_relu(seen, 0.1)), -1)


KINDS = {
    "convolutions": (Convolutions, (2, 9, 9)),
    "attention": (Attention, (6, 8)),
    "lstm": (Recurrent, (6, 8)),
    "perceptron": (Perceptron, (8,)),
}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """``net(kind)``: a model and its capture, made once."""
    known: dict[str, tuple[nn.Module, Source]] = {}

    def get(kind: str) -> tuple[nn.Module, Source]:
        if kind not in known:
            torch.manual_seed(0)
            made, shape = KINDS[kind]
            rows = np.random.default_rng(0).standard_normal((ROWS, *shape), dtype=np.float32)
            model = made()
            model(torch.tensor(rows))
            model.eval()
            known[kind] = model, source_of(model, rows, tmp_path_factory.mktemp("source"))
        return known[kind]

    return get


@pytest.fixture(scope="module")
def made(net, tmp_path_factory):
    """``made(kind, numerics, options)``: the artifact's folder and its facts, built once."""
    known: dict[tuple[str, ...], tuple[Path, dict]] = {}

    def get(kind: str, numerics: str, options: str = "") -> tuple[Path, dict]:
        if (kind, numerics, options) not in known:
            folder = tmp_path_factory.mktemp("artifact")
            asked = dataclasses.replace(net(kind)[1], numerics=parse_numerics(numerics))
            built = load(parse_named(f"coreml{options}")).build(asked, folder)
            known[kind, numerics, options] = folder, dict(built.executed)
        return known[kind, numerics, options]

    return get


def answered(folder: Path, source: Source, count: int = ROWS) -> np.ndarray:
    return coreml.load(folder, source.signature, 1)(rows_of(source, count))[0]


@pytest.mark.gate
@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_package_computes_what_the_model_does(kind, net, made):
    model, source = net(kind)
    wanted = answers_of(model, source)
    bytes_of = {}
    for numerics, limit in (("fp32", 1e-4), ("fp16", 2e-2)):
        folder, facts = made(kind, numerics)
        for count in (1, 5, ROWS):
            found = answered(folder, source, count)
            assert np.abs(found - wanted[:count]).max() <= limit * np.abs(wanted).max()
        bytes_of[numerics] = facts["weight_bytes"]
    folder, facts = made(kind, "int8_weights")
    assert cosine(answered(folder, source), wanted) >= 0.999
    assert not np.array_equal(answered(folder, source), answered(made(kind, "fp16")[0], source))
    assert facts["compressed"]["constexpr_affine_dequantize"] >= 2
    assert bytes_of["fp16"] < 0.75 * bytes_of["fp32"]  # headers of a few bytes weigh in small files


@pytest.mark.gate
def test_weights_have_the_bytes_they_should_have(tmp_path):
    """A large layer, so that nothing else counts: a half, a quarter, and an eighth."""
    model = nn.Linear(512, 256).eval()
    source = source_of(model, np.ones((4, 512), np.float32), tmp_path)
    sizes = {}
    for numerics, options in (
        ("fp32", ""),
        ("fp16", ""),
        ("int8_weights", ""),
        ("int8_weights", ":palette=4"),
    ):
        folder = tmp_path / f"{numerics}{options[1:]}"
        folder.mkdir()
        asked = dataclasses.replace(source, numerics=parse_numerics(numerics))
        built = load(parse_named(f"coreml{options}")).build(asked, folder)
        sizes[numerics + options] = built.executed["weight_bytes"] / (4 * 512 * 256)
    assert sizes == pytest.approx(
        {"fp32": 1, "fp16": 0.5, "int8_weights": 0.25, "int8_weights:palette=4": 0.125}, rel=0.03
    )


def test_recurrent_layers_stay_whole(made):
    operations = made("lstm", "fp32")[1]["operations"]
    assert operations["lstm"] == 2 and "sigmoid" not in operations


def test_a_palette_is_coarser_than_a_grid(net, made):
    model, source = net("convolutions")
    wanted = answers_of(model, source)
    folder, facts = made("convolutions", "int8_weights", ":palette=6")
    assert facts["compressed"]["constexpr_lut_to_dense"] >= 3
    grid = answered(made("convolutions", "int8_weights")[0], source)
    assert 0.99 < cosine(answered(folder, source), wanted) < cosine(grid, wanted)


def test_a_damaged_weight_is_seen(net, made, tmp_path):
    """The reference reads the file: a byte that is wrong in it is wrong in the answer."""
    _, source = net("perceptron")
    copy = tmp_path / "artifact"
    shutil.copytree(made("perceptron", "fp32")[0], copy)
    weights = next(copy.rglob("weight.bin"))
    stored = bytearray(weights.read_bytes())
    stored[-64:] = bytes(64)
    weights.write_bytes(stored)
    assert np.abs(answered(copy, source) - answered(made("perceptron", "fp32")[0], source)).max() > 1e-3


def test_an_operation_that_the_reference_does_not_know_is_named(made, monkeypatch):
    monkeypatch.delitem(OPERATIONS, "tanh")
    with pytest.raises(Unsupported, match="knows no tanh"):
        Package(made("perceptron", "fp32")[0] / "model.mlpackage")


def test_the_script_for_a_mac_holds_rows_and_answers(net, made):
    model, source = net("attention")
    folder, _ = made("attention", "fp16")
    assert {file.name for file in folder.iterdir()} == {"model.mlpackage", CHECK, CHECK_ROWS}
    stored = np.load(folder / "verify_on_mac.npz", allow_pickle=False)
    wanted = answers_of(model, source)[:8]
    (name,) = (port.name for port in source.signature.outputs)
    np.testing.assert_allclose(stored[f"original/{name}"], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stored[f"reference/{name}"], answered(folder, source, 8))


STAND_IN = """
import sys, types, numpy as np
sys.modules["karui"] = None
script, wrong = sys.argv[1], float(sys.argv[2])
stored = np.load(script.replace(".py", ".npz"))
class Model:
    def __init__(self, path, compute_units): assert path.endswith("model.mlpackage")
    def predict(self, inputs):
        rows = len(next(iter(inputs.values())))
        return {k[10:]: stored[k][:rows] + wrong for k in stored.files if k.startswith("reference/")}
space = types.SimpleNamespace
unit = space(CPU_ONLY=space(name="CPU_ONLY"), ALL=space(name="ALL"))
sys.modules["coremltools"] = space(models=space(MLModel=Model), ComputeUnit=unit)
exec(compile(open(script).read(), script, "exec"), {"__file__": script, "__name__": "__main__"})
"""


@pytest.mark.parametrize(("wrong", "code"), [(0.0, 0), (9.0, 1)])
def test_the_script_runs_without_karui_and_tells_right_from_wrong(made, wrong, code):
    """Core ML is not here: what stands in for it answers as stored, or beside it. The script is real."""
    script = made("attention", "fp16")[0] / "verify_on_mac.py"
    done = subprocess.run(
        [sys.executable, "-c", STAND_IN, str(script), str(wrong)], capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "ms a call of one row" in done.stdout and ("TOO FAR" in done.stdout) == bool(code)


def test_ranges_that_steps_have_settled_are_not_dropped(net, tmp_path):
    _, source = net("perceptron")
    settled = tmp_path / "source"
    settled.mkdir()
    (settled / "model.pt2").write_bytes((source.folder / "model.pt2").read_bytes())
    save_table(Table({"head.weight": Range(-torch.ones(3), torch.ones(3), 0, 8, "weight", True)}), settled)
    asked = dataclasses.replace(source, folder=settled, numerics=parse_numerics("int8_weights"))
    with pytest.raises(Unsupported, match="settled"):
        coreml.build(asked, tmp_path)


def test_a_model_without_weights_has_none_in_int8(tmp_path):
    source = source_of(nn.Softmax(-1), np.ones((4, 8), np.float32), tmp_path)
    with pytest.raises(BuildFailed, match="no weight"):
        coreml.build(dataclasses.replace(source, numerics=parse_numerics("int8_weights")), tmp_path)


def test_facts_are_plain_data(made):
    assert json.loads(json.dumps(made("lstm", "fp16")[1]))["precision"] == "fp16"


def test_what_is_refused_before_it_costs_a_trial():
    words = ("fp32", "fp16", "int8_weights", "int8", "bf16")
    asked = {word: coreml.refuses(Ask(parse_numerics(word))) for word in words}
    assert [asked[p] for p in ("fp32", "fp16", "int8_weights")] == [None] * 3
    assert "int8_weights" in asked["int8"] and "bfloat16" in asked["bf16"]
    assert "ONNX" in coreml.refuses(Ask(parse_numerics("fp32"), form="onnx"))
    assert "one precision" in coreml.refuses(Ask(parse_numerics("int8_weights[head=fp32]")))
    assert bool(coreml.stands_in()) == (sys.platform != "darwin")
