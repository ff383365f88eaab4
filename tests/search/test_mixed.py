"""Which layers stay in float, and how many have to: found by bisection over whole trials."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import karui
from karui.bench.rounds import Pace
from karui.measurement import Measurement, Quality, Ratio, Trial, Verification
from karui.optimize import Settings
from karui.recipe import parse_recipe
from karui.search.mixed import most_disturbing, propose_mixed

LAYERS = [
    {"layer": f"l{i}", "module": f"l{i}", "macs": 0.1, "sqnr_db": 20.0 + i, "int8": True} for i in range(10)
]


ROUNDED = "fold_norm + round_weights:method=gptq + correct_bias + int8@onnxruntime"


def trial(recipe: str, kept: bool, same: str = "faster", layers=LAYERS) -> Trial:
    quality = Quality(0.9, 0.0, 0.0, 0.0, "within" if kept else "over", 100)
    measured = Measurement(
        1,
        1,
        Verification("verified on runtime"),
        quality,
        speedup_same_runtime=Ratio(1.2, 1.1, 1.3, same),
        executed={"layers": layers},
    )
    status = "kept" if kept else "rejected"
    return Trial(recipe, recipe, "onnxruntime", "int8", status, "", measurement=measured)


def searched(needed: int, most: int = 4) -> list[int]:
    """How many modules each proposal keeps in float, where at least ``needed`` have to be."""
    trials = [trial("int8@onnxruntime", False), trial(ROUNDED, False)]
    while (recipe := propose_mixed(trials, most)) is not None:
        kept = [name for name, _ in recipe.numerics.rules]
        assert kept == [f"l{i}" for i in range(len(kept))]
        assert not recipe.steps
        trials.append(trial(str(recipe), len(kept) >= needed))
    return [len(parse_recipe(one.recipe).numerics.rules) for one in trials[2:]]


@pytest.mark.gate
def test_the_fewest_that_fit_are_found_in_few_trials():
    assert searched(1) == [1]
    assert searched(3) == [1, 2, 4, 3]
    assert searched(9, most=9)[-1] == 9
    assert all(len(searched(needed, most=3)) <= 3 for needed in range(1, 10))
    for needed in range(1, 10):
        assert needed in searched(needed, most=9)


def test_what_disturbs_most_for_its_work_goes_first():
    layers = [
        {"layer": "a.weight", "module": "a", "macs": 0.9, "sqnr_db": 20.0, "int8": True},
        {"layer": "b.weight", "module": "b", "macs": 0.1, "sqnr_db": 25.0, "int8": True},
        {"layer": "c.weight", "module": "c", "macs": 0.1, "sqnr_db": 5.0, "int8": False},
    ]
    assert most_disturbing({"layers": layers}) == ["b", "a"]


def test_nothing_is_mended_that_fits_or_does_not_pay_or_tells_no_layers():
    assert propose_mixed([trial("int8@onnxruntime", True)], 4) is None
    assert propose_mixed([trial("int8@onnxruntime", False, same="slower")], 4) is None
    assert propose_mixed([trial("int8@onnxruntime", False, layers=[])], 4) is None
    assert propose_mixed([trial("int8@onnxruntime", False)], 0) is None
    narrow = "prune_channels:macs=0.5 + int8@onnxruntime"
    assert propose_mixed([trial(narrow, False)], 4) is not None
    assert str(propose_mixed([trial("int8@onnxruntime", False)], 4)) == ROUNDED
    assert propose_mixed([trial("int8@onnxruntime", False), trial(ROUNDED, True)], 4) is None
    by_itself = "int8@onnxruntime:quantizer=onnxruntime"
    assert propose_mixed([trial(by_itself, False)], 4).numerics.rules
    twin = trial("prune_channels:macs=0.5 + fp32@onnxruntime", False)
    assert propose_mixed([twin, trial(narrow, False)], 4) is None  # its narrowing alone is too much
    assert propose_mixed([trial("fp16@onnxruntime", False)], 4) is None
    dynamic = propose_mixed([trial("int8_dynamic@onnxruntime", False)], 4)
    assert dynamic.numerics.rules and not dynamic.steps  # rounded weights are for static INT8


class Uneven(nn.Module):
    """One input is two hundred times as large as the others, which decide: INT8 inputs lose these."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 128), nn.Linear(128, 128), nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.mark.gate
def test_a_model_that_misses_the_budget_is_mended_by_itself(tmp_path):
    torch.manual_seed(0)
    model, x = Uneven().eval(), torch.randn(600, 16)
    x[:, 0] *= 200
    with torch.no_grad():
        model.first.weight[:, 0] *= 5e-3
        target = model(x).argmax(1)
    short = Pace(least=4, most=6, seconds=0.3)
    data = torch.utils.data.TensorDataset(x, target)
    result = karui.optimize(
        karui.Task(
            model=model,
            inputs=x[:2],
            calibrate=torch.utils.data.Subset(data, range(100)),
            select=torch.utils.data.Subset(data, range(100, 350)),
            confirm=torch.utils.data.Subset(data, range(350, 600)),
            score="top1",
        ),
        karui.Target("cpu", batch=64),
        budget=karui.Budget(max_drop=3),
        out=tmp_path / "run",
        settings=Settings(recipes=("int8@onnxruntime",), pace=short, final=short),
    )
    trials = {one["recipe"]: one for one in result.facts["trials"]}
    plain = trials["int8@onnxruntime"]
    assert ROUNDED in trials
    mended = trials["int8[first=fp32]@onnxruntime"]
    assert plain["status"] == "rejected" and mended["quality"]["drop"] < 0.03
    heard = {one["module"]: one["sqnr_db"] for one in plain["executed"]["layers"]}
    assert heard["first"] == min(heard.values()) < 15
    assert np.isclose(mended["executed"]["int8_macs"], 1 - 16 * 128 / (16 * 128 + 128 * 128 + 512), atol=1e-3)
