"""The cut is exact: cut model = uncut model with the same slices set to zero, on a zoo of small networks."""

from __future__ import annotations

import collections
import copy

import pytest
import torch
from benchmarks.zoo import CASES, built
from benchmarks.zoo.exact import check
from torch import nn

import karui

torch.set_num_threads(1)
PART = CASES[::3]  # make zoo runs all of them, with three seeds and ratios
OUTCOMES = collections.Counter()


@pytest.mark.gate
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PART, ids=lambda case: case.name)
def test_what_is_removed_leaves_no_trace(case):
    found = check(case, built(case, 0), 0.5, 0)
    OUTCOMES[found.verdict] += 1
    OUTCOMES["reached"] += found.reached and found.verdict == "exact"
    assert found.verdict in ("exact", "nothing", "refused"), found
    if found.verdict == "refused":
        assert case.frozen
    if found.verdict == "nothing":
        assert found.why


@pytest.mark.gate
def test_most_of_the_zoo_reaches_the_ratio():
    if sum(OUTCOMES.values()) < len(PART):
        pytest.skip("needs the outcomes of the whole zoo")
    assert len(PART) >= 120
    assert OUTCOMES["reached"] >= 0.85 * len(PART)


class Positions(nn.Module):
    """(n, 5, 8) -> (n, 5, 3); reads 5 rows of a table of 32."""

    def __init__(self):
        super().__init__()
        self.table, self.first = nn.Parameter(torch.randn(32, 12)), nn.Linear(8, 12)
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x) + self.table[: x.shape[1]]))


def test_what_only_longer_inputs_read_of_a_table_stays():
    net, x = Positions().eval(), torch.randn(20, 5, 8)
    found = karui.apply("prune_channels:importance=ln", net, inputs=x, calibrate=[x])
    assert found.model.table.shape == (32, 6)
    assert found.model(torch.randn(2, 9, 8)).shape == (2, 9, 3)


class Amplifying(nn.Module):
    """(n, 8) -> (n, 3); what its last layer rounds grows a hundred thousand times."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 600), nn.Linear(600, 3)

    def forward(self, x):
        y = self.last(torch.relu(self.first(x)))
        for _ in range(6):
            y = torch.sin(7 * y)
        return y


def test_a_network_that_amplifies_rounding_is_verified_in_float64():
    torch.manual_seed(0)
    net, x = Amplifying().eval(), torch.randn(20, 8)
    found = karui.apply("prune_channels:importance=ln,compensate=false", net, inputs=x, calibrate=[x])
    assert len(found.model.first.weight) == 300
    assert found.model.first.weight.dtype == torch.float32
    masked = copy.deepcopy(net)
    kept = found.facts["positions"]["first.weight"]["0"]
    with torch.no_grad():
        masked.last.weight[:, [i for i in range(600) if i not in kept]] = 0
    assert (found.model(x) - masked(x)).abs().max() > 1e-5  # float32 cannot tell
    assert (found.model.double()(x.double()) - masked.double()(x.double())).abs().max() < 1e-9
