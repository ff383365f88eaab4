"""A recipe with zeros: a plain file that shrinks with them; answers and kernels are those of a dense one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import karui
from karui.bench.rounds import Pace
from karui.budget import Budget
from karui.optimize import Settings
from karui.presets import cpu

SHORT = Pace(least=4, most=6, seconds=0.2)
STEP = "prune_weights:sparsity=0.9"
RECIPES = (
    "fp32@onnxruntime",
    f"{STEP} + fp32@onnxruntime",
    f"{STEP} + fp32@onnxruntime:pack_zeros=false",
    f"{STEP} + int8@onnxruntime",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    ).eval()  # fmt: skip
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 3, 8, 8)).astype(np.float32))
    task = karui.Task(net, x[:4], calibrate=[x[:100]], select=[x[100:]], score="agreement")
    settings = Settings(recipes=RECIPES, pace=SHORT, final=SHORT)
    folder = tmp_path_factory.mktemp("zeros") / "run"
    return karui.optimize(task, max_drop=95, out=folder, settings=settings)


@pytest.fixture(scope="module")
def trials(run):
    return {trial["recipe"]: trial for trial in run.facts["trials"]}


@pytest.mark.gate
def test_the_file_shrinks_with_the_share_of_what_is_not_zero(trials):
    dense, packed, plain, int8 = (trials[recipe] for recipe in RECIPES)
    for trial in (packed, plain, int8):
        assert trial["status"] != "failed", trial["reason"]
        assert trial["verification"]["status"] == "verified on runtime"
    assert plain["size_bytes"] > 0.95 * dense["size_bytes"]
    assert packed["size_bytes"] < 0.25 * dense["size_bytes"]
    assert int8["size_bytes"] < 0.25 * dense["size_bytes"]
    assert int8["executed"]["zeros_saved_bytes"] > 0
    saved = packed["executed"]["zeros_saved_bytes"]
    assert saved == plain["size_bytes"] - packed["size_bytes"]


@pytest.mark.gate
def test_answers_and_kernels_are_those_of_the_dense_file(run, trials):
    packed, plain = trials[RECIPES[1]], trials[RECIPES[2]]
    assert packed["executed"]["detail"] == plain["executed"]["detail"]
    x = np.random.default_rng(1).standard_normal((5, 3, 8, 8)).astype(np.float32)
    answers = [karui.load(run.folder / trial["artifact"])(x) for trial in (packed, plain)]
    np.testing.assert_array_equal(*answers)


def test_the_account_tells_where_the_zeros_are(run, trials):
    account = trials[RECIPES[1]]["executed"]["steps"][STEP]
    assert account["zeros"] == pytest.approx(0.9, abs=0.01)
    assert set(account["kept"]) == {"0.weight", "3.weight", "7.weight"}


def test_the_preset_offers_zeros_where_the_size_is_limited():
    def steps(budget, **how):
        return {str(step) for recipe in cpu.recipes(budget, **how) for step in recipe.steps}

    small = Budget(max_size_bytes=10_000)
    assert STEP in steps(small)
    assert STEP not in steps(Budget(), trains=True)
    assert any(text.startswith("iterative:") for text in steps(small, trains=True))
    assert not any(text.startswith("iterative:") for text in steps(small))
