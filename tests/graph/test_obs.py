"""Units are ranked by what their removal costs: beside the costs of least squares, solved anew each time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from karui.graph.call import signature_of
from karui.graph.importance import collect
from karui.graph.obs import elimination
from karui.graph.trace import trace
from karui.graph.units import find_units
from karui.graph.units.groups import find_groups

torch.set_num_threads(1)


def lost(W, H, kept):
    """What is left of the output's energy when the kept columns do their best."""
    new = torch.linalg.solve(H[kept][:, kept], H[kept] @ W.T)
    missing = W.T.clone()
    missing[kept] -= new
    return float((missing * (H @ missing)).sum())


@pytest.mark.parametrize("area", [1, 3])
def test_costs_after_each_removal_are_those_of_least_squares(area):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 12, 3), nn.ReLU(), nn.Conv1d(12, 5, area), nn.Flatten()).eval()
    x = torch.randn(64, 2, 12)
    units = find_units(trace(net, *signature_of(net, x, 2)))
    (group,) = find_groups(units).of
    graph = units.trace.graph
    found = collect(units, graph, [group], [(x,)])
    (reader,) = found.consumers
    H, state = found.moments[reader.weight].H[0], elimination(reader, graph, found, group)
    W, left = state.weights.clone(), list(range(12))
    H = H + 1e-4 * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    columns = {number: state.columns[number] for number in left}
    for going in ([7], [0, 11], [3, 4, 5], [1]):
        costs = torch.zeros(12, dtype=torch.float64)
        state.add_costs(costs)
        base = lost(W, H, kept_columns(columns, left, len(H)))
        for number in left:
            fewer = kept_columns(columns, [one for one in left if one != number], len(H))
            assert float(costs[number]) * state.scale == pytest.approx(lost(W, H, fewer) - base, rel=1e-4)
        state.remove(torch.tensor(going))
        left = [number for number in left if number not in going]


def kept_columns(columns, numbers, width):
    """With the column of ones."""
    return torch.cat([*(columns[number] for number in numbers), torch.tensor([width - 1])]).sort().values
