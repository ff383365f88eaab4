"""Statistics of each channel of computed tensors, over calibration data, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from karui.graph.trace import Walk


@dataclass
class Spread:
    """Over all places of each channel, (channels,), in float64. largest: in magnitude."""

    total: Tensor
    squares: Tensor
    largest: Tensor
    highest: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def power(self) -> Tensor:
        """The mean square."""
        return self.squares / self.count

    @property
    def deviation(self) -> Tensor:
        return (self.power - self.mean.square()).clamp(min=0).sqrt()

    def plus(self, other: Spread) -> Spread:
        return Spread(
            self.total + other.total,
            self.squares + other.squares,
            torch.maximum(self.largest, other.largest),
            torch.maximum(self.highest, other.highest),
            self.count + other.count,
        )


def spread_of(value: Tensor, axis: int) -> Spread:
    rows = value.movedim(axis, 0).flatten(1).double()
    return Spread(rows.sum(1), rows.square().sum(1), rows.abs().amax(1), rows.amax(1), rows.shape[1])


def spreads(
    graph: GraphModule, data: Sequence[tuple[Tensor, ...]], axes: Mapping[str, int]
) -> dict[str, Spread]:
    """Of nodes by their names; ``axes`` says where their channels lie. Runs no further than to the last."""
    found: dict[str, Spread] = {}
    for inputs in data:
        left = len(axes)
        for node, _, _, value in Walk(graph).steps(*inputs):
            if node.name in axes:
                new = spread_of(value, axes[node.name])
                found[node.name] = found[node.name].plus(new) if node.name in found else new
                left -= 1
            if not left:
                break
    return found
