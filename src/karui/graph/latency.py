"""Narrowing a model until it is as fast as asked: probe, predict, solve, time, and learn from the timing.

Shares are of the original's latency, on the runtime where ``time`` times; nothing here knows which.
"""

from __future__ import annotations

import hashlib
import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from karui.errors import Unsupported
from karui.graph.allocate import Curve, spend
from karui.graph.costs import Cost
from karui.graph.cut.shapes import gone_of
from karui.graph.macs import Product, total
from karui.graph.select import Ranked, allowed_counts, nearest
from karui.graph.staircase import MULTIPLES, staircase
from karui.graph.units import Units
from karui.graph.units.groups import Group
from karui.measurement import Ratio

Bundles = Sequence[frozenset[int]]
Times = Callable[[Sequence[set[int]], bool], Sequence[Ratio | None]]

SHARES = (0.5, 0.75)  # of the units that stay in a probe
STEPS = (8, 1, 32, 16, 4, 2)  # widths that probes are multiples of
FIRST = 4  # probes of all groups together, before those of each alone
MOST_ALONE = 12  # groups that are narrowed by themselves
PART = 6  # probes between two looks at the time
PROBE_S = 150.0  # after which no further probe is started
TIMED_LEVELS = 16  # widths that a group can take
LOOKS = 6  # models that are timed on the way to the goal
MARGIN, TIGHTER = 0.02, 0.02  # below the goal that is aimed at, and further after each miss
NEAR = 0.9  # of the goal: no need to look for a wider model that meets it


@dataclass(frozen=True)
class Look:
    """A narrowed model: predicted and timed share of the original's latency, with its 95 % interval.

    guessed: predicted before it was timed; predicted: with what all looks have taught.
    """

    counts: Mapping[str, int]
    guessed: float
    predicted: float
    share: float
    low: float
    high: float

    def told(self) -> dict[str, float]:
        names = ("guessed", "predicted", "share", "low", "high")
        return {name: round(getattr(self, name), 3) for name in names}


@dataclass
class Search:
    """One model on its way to a latency.

    taken: all units that are gone once these bundles go. time: the models without these units, left out
    where they do not run; and whether carefully.
    """

    units: Units
    products: Sequence[Product]
    ranked: Sequence[Ranked]
    taken: Callable[[Bundles], set[int]]
    time: Times

    def __post_init__(self) -> None:
        nothing = gone_of(self.units.roots, ())
        self.stairs = staircase(self.products, nothing)
        self.stairs.learn([(nothing, 1.0)], weight=10.0)
        self.looks: list[Look] = []

    def probe(self) -> None:
        """Time narrowed models that tell most about the runtime."""
        start, sets = clock.monotonic(), probes(self.ranked, self.macs)
        for first in range(0, len(sets), PART):
            part = [self.taken(bundles) for bundles in sets[first : first + PART]]
            found = [(gone_of(self.units.roots, r), t) for r, t in zip(part, self.time(part, False)) if t]
            self.stairs.learn([(gone, 1 / ratio.ratio) for gone, ratio in found])
            if clock.monotonic() - start > PROBE_S:
                return

    def macs(self, bundles: Bundles) -> float:
        return total(list(self.products), gone_of(self.units.roots, set().union(*bundles)))

    def predicted(self, removed: set[int]) -> float:
        """Share of the original's latency without these units, and those of earlier steps."""
        return self.stairs.share(gone_of(self.units.roots, removed | self.taken([])))

    def spend(self, curves: Sequence[Curve], goal: float) -> Mapping[str, int]:
        """Counts of bundles that are predicted to meet ``goal`` with the least damage."""
        stairs = self.stairs
        cost = Cost(
            self.units.roots,
            [torch.from_numpy(table) for table in stairs.tables],
            lambda gone: stairs.share_of(stairs.features_at(gone)),
        )
        return spend(curves, cost, goal, self.taken([]))

    def reach(self, curves: Sequence[Curve], goal: float) -> Mapping[str, int]:
        """Counts of bundles whose model was timed and meets ``goal``, even at the end of its interval.

        Raises Unsupported where none was found.
        """
        margin = MARGIN
        for _ in range(LOOKS):
            look = self.look(curves, goal * (1 - margin))
            known = look.counts in [other.counts for other in self.looks]
            self.looks.append(look)
            if look.high <= goal and (known or look.share >= NEAR * goal):
                break
            if look.high > goal:
                margin = max(margin + TIGHTER, look.high / look.share - 1)
        good = [look for look in self.looks if look.high <= goal]
        if not good:
            best = min(self.looks, key=lambda look: look.share)
            reach = f"{best.share:.1%} [{best.low:.1%}, {best.high:.1%}]"
            raise Unsupported(
                f"no widths were found that take {goal:.0%} of the original's latency",
                why=f"the fastest of {len(self.looks)} that were timed took {reach}",
                fix="ask for less, or another runtime or precision",
            )
        best = max(good, key=lambda look: look.share)
        self.looks.append(replace(best, predicted=self.predicted(self.removed(curves, best.counts))))
        return best.counts

    def look(self, curves: Sequence[Curve], aim: float) -> Look:
        """Solve for ``aim``, time what comes out, and learn from it."""
        counts = self.spend(curves, aim)
        removed = self.removed(curves, counts)
        guessed = self.predicted(removed)
        ratio = self.time([removed], True)[0]
        if ratio is None:
            raise Unsupported("the narrowed model does not run on the runtime")
        share = 1 / ratio.ratio
        weight = max(1.0, float(len(self.stairs.rows)))  # it lies nearer to the goal than all before
        self.stairs.learn([(gone_of(self.units.roots, removed), share)], weight)
        predicted = self.predicted(removed)
        return Look(counts, guessed, predicted, share, 1 / ratio.high, 1 / ratio.low)

    def removed(self, curves: Sequence[Curve], counts: Mapping[str, int]) -> set[int]:
        return self.taken([bundle for one in curves for bundle in one.bundles[: counts[one.group.name]]])

    def told(self) -> dict[str, Any]:
        return {**self.looks[-1].told(), "looks": len(self.looks) - 1}


def probes(ranked: Sequence[Ranked], weigh: Callable[[Bundles], float]) -> list[Bundles]:
    """Bundles to remove that tell most about the runtime, the most telling first.

    All groups together, at widths that are multiples of 32 down to odd ones; and each group alone, those
    first whose removal saves most (``weigh``: the multiplications that stay).
    """
    together = [narrowed(ranked, share, step) for share in SHARES for step in STEPS]
    alone = sorted((narrowed([one], SHARES[0], STEPS[0]) for one in ranked), key=weigh)[:MOST_ALONE]
    found: list[Bundles] = []
    for bundles in [*together[:FIRST], *alone, *together[FIRST:]]:
        if bundles and bundles not in found:
            found.append(bundles)
    return found


def narrowed(ranked: Sequence[Ranked], share: float, step: int) -> Bundles:
    """What to remove so that about ``share`` of each group stays, in widths of ``step`` and not of 2 step."""
    found: list[frozenset[int]] = []
    for one in ranked:
        wide = len(one.group.units)
        coarse = next((s for s in MULTIPLES[::-1] if s <= step and 2 * s <= wide), 1)
        counts = [n for n in allowed_counts(one, coarse) if not n or left(one, n) % (2 * coarse)]
        found += one.bundles[: nearest(counts, (1 - share) * len(one.bundles))]
    return found


def left(one: Ranked, count: int) -> int:
    """The group's width after ``count`` bundles."""
    return len(one.group.units) - len(set().union(*one.bundles[:count]).intersection(one.group.units))


def structure(units: Units) -> str:
    """A digest of what is computed on tensors of which sizes, whatever values the weights have."""
    shapes = [f"{path}{labels.shape}" for path, labels in units.weights.items()]
    text = "\n".join([units.trace.graph.code, *shapes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def widths(groups: Sequence[Group], removed: set[int]) -> str:
    """Names a narrowed model by the widths of its groups."""
    return ",".join(str(len(set(group.units) - removed)) for group in groups)
