"""How many units each group loses: the least damage to the answers for the cost that has to go.

Damage is measured, not assumed: a group is pruned by itself, the layers that read it are refitted in
closed form, and the answers are compared with the original's on part of the calibration data. It is the
one of ``compensate.damage``: the KL divergence of class probabilities, or a relative squared error. No
labels are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from karui.graph.compensate import Held, moved
from karui.graph.consumers import Consumer, store_matrix, stored_weights, tensor_at
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
    runs: Rerun,
    held: Held,
) -> Curve:
    """Measure what removing the first 0, ... of ``bundles`` does, each of ``counts`` by itself.

    runs: of the graph, on the held samples.
    """
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


def spend(curves: Sequence[Curve], cost: Callable[[set[int]], float], goal: float) -> Mapping[str, int]:
    """Counts for every group, by name, so that ``cost`` falls to ``goal`` with the least summed damage.

    Steepest descent: each step takes the group whose next levels give up most cost for the damage they add.
    What the last steps took too much is given back where it spares most damage.
    """
    chosen = {one.group.name: 0 for one in curves}
    removed: set[int] = set()
    now = cost(removed)
    while now > goal:
        best: tuple[float, Curve, int, float] | None = None
        for one in curves:
            at = one.counts.index(chosen[one.group.name])
            for next_at in jumps(at, len(one.counts)):
                after = cost(removed | one.removed(one.counts[next_at]))
                if after >= now:
                    continue
                gained = now - max(after, goal)
                price = (one.errors[next_at] - one.errors[at]) / gained
                if best is None or price < best[0]:
                    best = (price, one, one.counts[next_at], after)
        if best is None:
            break
        _, one, count, now = best
        chosen[one.group.name] = count
        removed |= one.removed(count)
    return chosen if now > goal else given_back(curves, chosen, cost, goal)


def given_back(
    curves: Sequence[Curve], chosen: Mapping[str, int], cost: Callable[[set[int]], float], goal: float
) -> dict[str, int]:
    """Fewer of each group, those first that cost most damage, as long as ``cost`` stays within ``goal``."""
    left = dict(chosen)
    for one in sorted(curves, key=lambda one: -one.errors[one.counts.index(left[one.group.name])]):
        others = set().union(*(other.removed(left[other.group.name]) for other in curves if other is not one))
        left[one.group.name] = next(
            count
            for count in one.counts
            if count == left[one.group.name] or cost(others | one.removed(count)) <= goal
        )
    return left


def jumps(at: int, end: int) -> list[int]:
    """Next places to look at, each twice as far as the one before: a long way can be cheap at its end."""
    return [at + 2**power for power in range(end.bit_length()) if at + 2**power < end]
