"""Models given as files, and runs that end in 3 or 5 (an ONNX model makes for a short run)."""

from __future__ import annotations

import json

import jobs
import numpy as np
import pytest
import torch
from torch import nn

import karui
from karui.graph.program import as_module

pytestmark = pytest.mark.gate


def optimize(cli, file, *words):
    """The result document and the exit code of a run on ``file``."""
    said = cli(
        "optimize", file, "--select", "data.py:both", "--out", "run", "--pace", "quick", "--json", *words
    )
    facts = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert "error" not in facts, facts
    assert facts["verdict"]["exit_code"] == said.code
    return facts, {row["id"]: row for row in facts["trials"]}, said.code


def test_onnx_and_a_budget_out_of_reach(cli, tmp_path):
    model, inputs = jobs.write_files(tmp_path)
    recipes = ["--recipe", "int8_dynamic@onnxruntime", "--recipe", "fp32@torch_eager"]
    facts, rows, code = optimize(cli, "net.onnx", *recipes, "--max-drop", "10", "--max-size", "1B")
    assert code == 3
    assert rows["onnxruntime-fp32"]["status"] == "kept"
    assert rows["onnxruntime-fp32"]["quality"]["value"] == 1.0
    assert rows["onnxruntime-int8_dynamic"]["status"] == "rejected"
    assert rows["onnxruntime-int8_dynamic"]["reason"] == "larger than the size limit"
    assert (facts["baseline"], facts["best"]) == ("onnxruntime-fp32", None)
    assert facts["best_effort"] == "onnxruntime-int8_dynamic"
    assert "the original is kept" in facts["verdict"]["headline"]
    assert "no torch module" in facts["refused"][0]["reason"]
    answer = karui.load(tmp_path / "run" / "trials" / "onnxruntime-fp32" / "artifact")(inputs[:1].numpy())
    with torch.no_grad():
        assert np.allclose(answer, model(inputs[:1]), atol=1e-5)
    said = cli("show", "run")
    assert said.code == 0
    assert "the original is kept" in said.out
    for verb in (["export", "run", "--to", "copy"], ["verify", "run"]):
        said = cli(*verb)
        assert said.code == 2
        assert "chose nothing" in said.err


def test_too_few_samples_to_decide(cli, tmp_path):
    jobs.write_files(tmp_path)
    facts, rows, code = optimize(cli, "net.onnx", "--recipe", "int8_dynamic@onnxruntime", "--max-drop", "0.1")
    found = rows["onnxruntime-int8_dynamic"]
    assert found["quality"]["verdict"] == "undecided"
    assert found["quality"]["more_samples"] > 0
    assert "more samples" in found["reason"]
    assert (code, facts["best"]) == (5, None)
    assert "too few samples to decide" in facts["verdict"]["headline"]


class Small(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.first, self.head = nn.Linear(8, 64), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)).reshape(x.shape[0], -1))


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
