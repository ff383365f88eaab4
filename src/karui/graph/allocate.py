"""How many units each group loses: the least damage to the answers for the cost that has to go.

Damage is measured, not assumed: a group is pruned by itself, the layers that read it are refitted in
closed form, and the answers are compared with the original's on part of the calibration data. It is the
one of ``compensate.damage``: the KL divergence of class probabilities, or a relative squared error. No
labels are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from karui.graph.compensate import Held, moved
from karui.graph.consumers import Consumer, store_matrix, stored_weights, tensor_at
from karui.graph.costs import Cost, Floats
from karui.graph.cut.partial import over_what_stays
from karui.graph.cut.shapes import Gone, gone_of, zero_out
from karui.graph.gram import solve
from karui.graph.importance import Statistics, columns_of, readers_of
from karui.graph.rerun import Rerun
from karui.graph.units import Units
from karui.graph.units.groups import Group

RIDGE = 1e-4


@dataclass(frozen=True)
class Curve:
    """For one group: bundles in the order in which they go, and the damage after some counts of them.

    counts: numbers of bundles, rising from 0. errors: the damage (``compensate.damage``) after each of them.
    """

    group: Group
    bundles: tuple[frozenset[int], ...]
    counts: tuple[int, ...]
    errors: tuple[float, ...]

    def removed(self, count: int) -> set[int]:
        return set().union(*self.bundles[:count])


def curve(
    units: Units,
    group: Group,
    bundles: Sequence[frozenset[int]],
    counts: Sequence[int],
    found: Statistics,
    on: tuple[Rerun, Held],
) -> Curve:
    """Measure what removing the first 0, ... of ``bundles`` does, each of ``counts`` by itself.

    on: runs of the graph on the held samples, and the answers that are wanted.
    """
    runs, held = on
    graph, errors = units.trace.graph, [0.0]
    readers = readers_of(group.members, found.consumers)
    before = changing(units, readers, gone_of(units.roots, set().union(*bundles)))
    settled = 0 if units.classes.inexact else runs.first_read(tensor_at(graph, path) for path in before)
    for count in counts[1:]:
        removed = set().union(*bundles[:count])
        for consumer in readers:
            take_over(graph, consumer, found, removed)
        gone = gone_of(units.roots, removed)
        zero_out(graph, units, gone)
        with over_what_stays(graph, units, gone):
            errors.append(moved((runs.answers(batch, settled) for batch in range(len(runs.data))), held))
        for path, tensor in before.items():
            tensor_at(graph, path).data.copy_(tensor)
    return Curve(group, tuple(bundles), tuple(counts), rising(errors))


def changing(units: Units, readers: Sequence[Consumer], gone: Gone) -> dict[str, Tensor]:
    """Copies of the stored tensors that refitting the readers and removing these units writes into."""
    graph = units.trace.graph
    found = [path for one in readers for path in (one.weight, one.bias) if path is not None]
    found += [
        path for path, labels in units.weights.items() if any(bool(gone.at(p).any()) for p in labels.planes)
    ]
    return {path: tensor_at(graph, path).detach().clone() for path in dict.fromkeys(found)}


def between(curve: Curve, counts: Sequence[int]) -> Curve:
    """The curve at all ``counts``, straight lines drawn between those that were measured."""
    errors = np.interp(counts, curve.counts, curve.errors)
    return dataclasses.replace(curve, counts=tuple(counts), errors=tuple(errors.tolist()))


def rising(errors: Sequence[float]) -> tuple[float, ...]:
    """More removed cannot be better; what looks so is noise."""
    found: list[float] = []
    for error in errors:
        found.append(max(error, found[-1] if found else 0.0))
    return tuple(found)


def take_over(graph: GraphModule, consumer: Consumer, found: Statistics, removed: set[int]) -> None:
    """Refit one layer to its own outputs on the columns that stay, from second moments alone."""
    if consumer.groups > 1:
        return
    moments = found.moments[consumer.weight]
    start = stored_weights(graph, consumer, ones=moments.ones)
    keep = torch.ones(len(moments.H[0]), dtype=torch.bool)
    keep[columns_of(consumer, graph, removed)] = False
    new = solve(moments.H[0], moments.H[0] @ start.T, start.T, keep, RIDGE).T.float()
    store_matrix(graph, consumer, new[:, : consumer.width(graph)])
    if consumer.bias is not None:
        tensor_at(graph, consumer.bias).data.copy_(new[:, -1])


@dataclass
class Spending:
    """What is gone of each table of labels while groups give up units, each a level of its curve."""

    curves: Sequence[Curve]
    cost: Cost
    before: Set[int]  # gone already

    def __post_init__(self) -> None:
        self.level = [0] * len(self.curves)
        self.rows = [self.cost.rows(one.bundles, one.counts) for one in self.curves]
        self.start = self.now = self.cost.gone(self.before)
        taken = [frozenset().union(*one.bundles) for one in self.curves]
        self.apart = len(frozenset().union(*taken)) == sum(map(len, taken))

    def after(self, number: int, level: int) -> float:
        """The cost when one group is at another level."""
        return self.cost.of(self.counts(number, level))

    def counts(self, number: int, level: int) -> Floats:
        if self.apart:
            rows = self.rows[number]
            return np.asarray(self.now + (rows[level] - rows[self.level[number]]))
        levels = [level if i == number else one for i, one in enumerate(self.level)]
        removed = [one.removed(one.counts[at]) for one, at in zip(self.curves, levels)]
        return self.cost.gone(set(self.before).union(*removed))

    def move(self, number: int, level: int) -> None:
        self.now = self.counts(number, level)
        self.level[number] = level

    @property
    def chosen(self) -> dict[str, int]:
        return {one.group.name: one.counts[at] for one, at in zip(self.curves, self.level)}


def spend(curves: Sequence[Curve], cost: Cost, goal: float, before: Set[int]) -> dict[str, int]:
    """Counts for every group, by name, so that ``cost`` falls to ``goal`` with the least summed damage.

    Steepest descent: each step takes the group whose next levels give up most cost for the damage they add.
    What the last steps took too much is given back where it spares most damage. before: what is gone already.
    """
    spending = Spending(curves, cost, before)
    now = cost.of(spending.start)
    while now > goal:
        best: tuple[float, int, int, float] | None = None
        for number, one in enumerate(curves):
            at = spending.level[number]
            for level in jumps(at, len(one.counts)):
                after = spending.after(number, level)
                if after >= now:
                    continue
                price = (one.errors[level] - one.errors[at]) / (now - max(after, goal))
                if best is None or price < best[0]:
                    best = (price, number, level, after)
        if best is None:
            return spending.chosen
        _, number, level, now = best
        spending.move(number, level)
    give_back(spending, goal)
    return spending.chosen


def give_back(spending: Spending, goal: float) -> None:
    """Fewer of each group, those first that cost most damage, as long as the cost stays within ``goal``."""
    damage = [-one.errors[at] for one, at in zip(spending.curves, spending.level)]
    for number in sorted(range(len(damage)), key=damage.__getitem__):
        at = spending.level[number]
        fewer = (level for level in range(at) if spending.after(number, level) <= goal)
        spending.move(number, next(fewer, at))


def jumps(at: int, end: int) -> list[int]:
    """Next places to look at, each twice as far as the one before: a long way can be cheap at its end."""
    return [at + 2**power for power in range(end.bit_length()) if at + 2**power < end]
