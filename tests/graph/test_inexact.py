"""Units under LayerNorm, GroupNorm and softmax go only on request, and the rest is what it should be."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from benchmarks.zoo import CASES, built
from benchmarks.zoo.exact import cut_at_random, prepare
from torch import nn
from torch.nn import functional

import karui
from karui.graph.units import find_units
from karui.graph.units.groups import find_groups

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


class Normed(nn.Module):
    """A layer norm over 24 units, a group norm over 4 groups of 4, a softmax over 12."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(16, 12)
        self.first, self.second, self.head = nn.LayerNorm(24), nn.GroupNorm(4, 16), nn.Linear(12, 5)

    def forward(self, x):
        x = self.second(self.two(torch.relu(self.first(self.one(x)))))
        return self.head(self.three(x).softmax(-1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = Normed()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval()


def prune(model, options):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return karui.apply(f"prune_channels:{options}", model, inputs=x[:4], calibrate=[x])


@torch.no_grad()
def by_hand(model, positions, x):
    """The layers with rows and columns taken out one by one; norms over what is left."""
    at = {path: {axis: torch.tensor(kept) for axis, kept in axes.items()} for path, axes in positions.items()}
    one, two, three = (at[f"{name}.weight"]["0"] for name in ("one", "two", "three"))
    x = functional.linear(x, model.one.weight[one], model.one.bias[one])
    x = functional.layer_norm(x, [len(one)], model.first.weight[one], model.first.bias[one]).relu()
    x = functional.linear(x, model.two.weight[two][:, one], model.two.bias[two])
    x = functional.group_norm(x, 4, model.second.weight[two], model.second.bias[two])
    x = functional.linear(x, model.three.weight[three][:, two], model.three.bias[three]).softmax(-1)
    return functional.linear(x, model.head.weight[:, three], model.head.bias)


def test_they_stay_unless_asked(model):
    found = prune(model, "importance=random")
    assert "layer_norm" in found.skipped["one.weight[0]"]
    assert found.facts["inexact"] == []
    assert "one.weight" not in found.facts["positions"]


def test_on_request_they_go_and_statistics_are_over_what_stays(model):
    found = prune(model, "inexact=true,importance=random,compensate=false")
    widths = [len(found.facts["positions"][f"{name}.weight"]["0"]) for name in ("one", "two", "three")]
    assert widths == [12, 8, 6]
    assert [why.partition(" ")[0] for why in found.facts["inexact"]] == [
        "group_norm",
        "layer_norm",
        "softmax",
    ]
    x = torch.randn(16, 8)
    wanted = by_hand(model, found.facts["positions"], x)
    assert (found.model(x) - wanted).abs().max() < 1e-5
    assert found.facts["cut_error"] < 1e-5


def test_what_stays_makes_up_for_it(model):
    bare, fitted = (prune(model, f"inexact=true,compensate={word}").facts for word in ("false", "true"))
    assert fitted["damage"] < 0.8 * bare["damage"]


@pytest.mark.parametrize("case", [case for case in CASES if not case.exact], ids=lambda case: case.name)
def test_cases_that_are_inexact_by_nature_are_cut_as_they_should(case):
    found = prepare(case, built(case, 0))
    strict = sum(len(group.units) for group in found.groups.offered("dims"))
    units = find_units(found.units.trace, inexact=True)
    lenient = dataclasses.replace(found, units=units, groups=find_groups(units))
    offered = lenient.groups.offered("dims")
    made, _ = cut_at_random(lenient, offered, 0.5, 0)
    assert made.error < 1e-5
    if sum(len(group.units) for group in offered) > strict:
        assert made.inexact
