"""A recipe with a step: its artifact is verified against the changed model; the result says what it did."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import karui
from karui.bench.rounds import Pace
from karui.optimize import Settings
from karui.optimize.again import verify_again

SHORT = Pace(least=4, most=6, seconds=0.2)
RECIPES = (
    "prune_channels:ratio=0.5 + fp32@onnxruntime",
    "prune_channels:ratio=0.5 + int8@onnxruntime",
    "prune_channels:ratio=0.5 + fp32@torch_eager",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(16, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4),
    ).eval()  # fmt: skip
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 3, 8, 8)).astype(np.float32))
    task = karui.Task(net, x[:4], calibrate=[x[:100]], select=[x[100:]], score="agreement")
    settings = Settings(recipes=RECIPES, pace=SHORT, final=SHORT)
    folder = tmp_path_factory.mktemp("steps") / "run"
    return karui.optimize(task, max_drop=90, out=folder, settings=settings)


@pytest.mark.gate
def test_the_narrower_model_is_accepted_by_the_runtimes_and_verified(run):
    pruned = [trial for trial in run.facts["trials"] if " + " in trial["recipe"]]
    assert len(pruned) == 3
    for trial in pruned:
        assert trial["status"] != "failed", trial["reason"]
        assert trial["verification"]["status"] == "verified on runtime"


@pytest.mark.gate
def test_the_result_says_what_went_and_what_stayed(run):
    by_name = {trial["recipe"]: trial for trial in run.facts["trials"]}
    pruned = by_name[RECIPES[0]]
    account = pruned["executed"]["steps"]["prune_channels:ratio=0.5"]
    assert account["kept"] == {"0.weight[0]": "8 of 16", "3.weight[0]": "6 of 12"}
    assert account["macs"][1] < 0.5 * account["macs"][0]
    assert "the model's output" in account["left"]
    assert pruned["size_bytes"] < 0.6 * by_name["fp32@onnxruntime"]["size_bytes"]
    whole = json.loads(next(run.folder.glob("model/*/steps.json")).read_text())
    assert len(whole["prune_channels:ratio=0.5"]["facts"]["positions"]["3.weight"]["1"]) == 8


@pytest.mark.gate
def test_the_report_shows_it(run):
    page = (run.folder / "report.html").read_text()
    assert "MACs 1/" in page
    if run.facts["best"] and " + " in run.best.recipe:
        assert "What was changed in the network" in page
        assert "8 of 16" in page


def test_verifying_again_compares_with_the_changed_model(run):
    trial = next(trial for trial in run.facts["trials"] if trial["recipe"] == RECIPES[0])
    assert verify_again(run.folder / trial["artifact"], None, speed=False)["ok"]


def test_steps_that_fail_are_not_tried_again_for_the_next_precision(tmp_path, monkeypatch):
    from karui.techniques.prune_channels import PruneChannels

    calls = []
    whole = PruneChannels.apply
    monkeypatch.setattr(PruneChannels, "apply", lambda *args: calls.append(1) or whole(*args))
    x = torch.randn(60, 8)
    task = karui.Task(nn.Linear(8, 3), x[:4], select=[x], score="agreement")
    settings = Settings(recipes=("fp32@onnxruntime", *RECIPES[:2]), pace=SHORT, final=SHORT)
    result = karui.optimize(task, max_drop=90, out=tmp_path / "run", settings=settings)
    failed = [trial for trial in result.facts["trials"] if trial["status"] == "failed"]
    assert len(failed) == 2
    assert all("found nothing to change" in trial["reason"] for trial in failed)
    assert len(calls) == 1
