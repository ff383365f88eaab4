"""Models given as files: exported programs, TorchScript and ONNX; and runs that end in 3 or 5."""

from __future__ import annotations

import json
import warnings

import jobs
import numpy as np
import pytest
import torch
from torch import nn

import karui
from karui.graph.program import as_module

pytestmark = pytest.mark.gate


class Small(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.first, self.head = nn.Linear(8, 64), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)).reshape(x.shape[0], -1))


@pytest.fixture
def data(tmp_path):
    torch.manual_seed(0)
    model = Small().eval()
    inputs, labels = jobs.labelled(model, 8, rows=240)
    np.savez(tmp_path / "data.npz", inputs=inputs.numpy(), labels=labels.numpy())
    (tmp_path / "data.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n"
        "stored = np.load(Path(__file__).with_name('data.npz'))\n"
        "both = stored['inputs'], stored['labels']\n"
    )
    return model, inputs


def optimize(cli, file, *words):
    """The result document and the exit code of a run on ``file``."""
    said = cli("optimize", file, "--select", "data.py:both", "--out", "run", "--pace", "quick", "--json", *words)
    facts = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert "error" not in facts, facts
    assert facts["verdict"]["exit_code"] == said.code
    return facts, said.code


def test_an_exported_program_and_a_budget_out_of_reach(cli, data, tmp_path):
    model, inputs = data
    torch.export.save(torch.export.export(model, (inputs[:1],)), tmp_path / "net.pt2")  # takes one row only
    facts, code = optimize(cli, "net.pt2", "--recipe", "fp32@onnxruntime", "--max-size", "1B")
    assert code == 3
    rows = {row["id"]: row for row in facts["trials"]}
    assert rows["torch_eager-fp32"]["status"] == "kept"
    assert rows["onnxruntime-fp32"]["status"] == "rejected"
    assert rows["onnxruntime-fp32"]["reason"] == "larger than the size limit"
    assert facts["best"] is None
    assert facts["best_effort"] == "onnxruntime-fp32"
    assert "the original is kept" in facts["verdict"]["headline"]
    with torch.no_grad():
        answer = karui.load(tmp_path / "run" / "trials" / "onnxruntime-fp32" / "artifact")(inputs[:1])
        assert torch.allclose(answer, model(inputs[:1]), atol=1e-5)
    said = cli("show", "run")
    assert said.code == 0
    assert "the original is kept" in said.out
    for verb in (["export", "run", "--to", "copy"], ["verify", "run"]):
        said = cli(*verb)
        assert said.code == 2
        assert "chose nothing" in said.err


def test_torchscript_and_too_few_samples_to_decide(cli, data, tmp_path):
    model, inputs = data
    with pytest.warns(DeprecationWarning):
        torch.jit.trace(model, inputs[:2]).save(tmp_path / "net.pt")
    fp32_size = sum(p.numel() * 4 for p in model.parameters())
    recipes = ["--recipe", "int8_dynamic@onnxruntime", "--max-size", f"{fp32_size}B"]
    facts, code = optimize(cli, "net.pt", *recipes, "--max-drop", "0.1")
    rows = {row["id"]: row for row in facts["trials"]}
    assert rows["onnxruntime-int8_dynamic"]["quality"]["verdict"] == "undecided"
    assert rows["onnxruntime-int8_dynamic"]["quality"]["more_samples"] > 0
    assert "more samples" in rows["onnxruntime-int8_dynamic"]["reason"]
    assert (code, facts["best"]) == (5, None)
    assert "too few samples to decide" in facts["verdict"]["headline"]


def test_onnx(cli, data, tmp_path):
    model, inputs = data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (inputs[:1],), tmp_path / "net.onnx", dynamo=True, verbose=False)
    recipes = ["--recipe", "int8_dynamic@onnxruntime", "--recipe", "fp32@torch_eager"]
    facts, code = optimize(cli, "net.onnx", *recipes, "--max-drop", "10")
    rows = {row["id"]: row for row in facts["trials"]}
    assert code in (0, 3)  # INT8 may or may not be faster at this size
    assert facts["baseline"] == "onnxruntime-fp32"
    assert rows["onnxruntime-fp32"]["quality"]["value"] == 1.0
    assert rows["onnxruntime-int8_dynamic"]["quality"]["verdict"] == "within"
    assert "no torch module" in facts["refused"][0]["reason"]
    answer = karui.load(tmp_path / "run" / "trials" / "onnxruntime-fp32" / "artifact")(inputs[:1].numpy())
    with torch.no_grad():
        assert np.allclose(answer, model(inputs[:1]), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_program_of_fixed_rows_takes_any_number(tmp_path, rows):
    torch.manual_seed(0)
    model = Small().eval()
    inputs = torch.randn(rows, 8)
    torch.export.save(torch.export.export(model, (inputs,)), tmp_path / "net.pt2")
    module = as_module(tmp_path / "net.pt2")
    for count in (1, 2, 7, 10):
        given = torch.randn(count, 8)
        with torch.no_grad():
            assert torch.allclose(module(given), model(given), atol=1e-6)
