"""A latency goal in a run: narrowed copies are timed in the recipe's runtime, and the result meets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import karui
from karui.bench.rounds import Pace
from karui.graph import latency
from karui.optimize import Settings
from karui.optimize.clock import MEMORY, RuntimeClock, cache_folder

FEW = Pace(least=32, most=32, seconds=1.0, openings=4, most_openings=4)
SHORT = Pace(least=10, most=20, seconds=1.0)
RECIPE = "prune_channels:latency=0.6 + fp32@onnxruntime"


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    ).eval()  # fmt: skip
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((300, 3, 24, 24)).astype(np.float32))
    return karui.Task(net, x[:4], calibrate=[x[:150]], select=[x[150:]], score="agreement")


@pytest.mark.gate
def test_the_goal_is_met_where_it_was_asked_and_remembered(task, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "PROBE_S", 0.0)
    real = RuntimeClock.timed
    monkeypatch.setattr(RuntimeClock, "timed", lambda self, variants, pace: real(self, variants, FEW))
    settings = Settings(recipes=("fp32@onnxruntime", RECIPE), pace=SHORT, final=SHORT)
    run = karui.optimize(task, max_drop=100, out=tmp_path / "run", settings=settings)
    trial = next(trial for trial in run.facts["trials"] if trial["recipe"] == RECIPE)
    assert trial["verification"]["status"] == "verified on runtime", trial["reason"]
    told = trial["executed"]["steps"]["prune_channels:latency=0.6"]["latency"]
    assert told["high"] <= 0.6
    assert told["predicted"] == pytest.approx(told["share"], rel=0.1)
    assert trial["speedup_same_runtime"]["ratio"] > 1.3
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "% predicted, " in page
    assert not (run.folder / "timing").exists()
    lines = (cache_folder() / MEMORY).read_text(encoding="utf-8").splitlines()
    assert len(lines) == len({line.split(",")[0] for line in lines}) >= 7  # six probes and the result
