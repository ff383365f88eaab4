"""Removing channels, heads and hidden units for good: a narrower network, with no training and no labels.

What must go together is found in the exported graph (graph/units); the cut is checked against the model
with the same units set to zero (graph/cut); the layers that read a removed unit are refitted by least
squares on calibration data (graph/compensate). Hassibi & Stork 1993; Frantar & Alistarh 2022,
arXiv:2208.11580; Fang et al. 2023, arXiv:2301.12900.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import Any, Literal, final

from torch import Tensor, nn
from torch.fx import GraphModule

from karui.errors import Unsupported, UsageError
from karui.graph import costs
from karui.graph import macs as counting
from karui.graph.allocate import Curve, spend
from karui.graph.compensate import compensate, damage, held_out
from karui.graph.consumers import batches
from karui.graph.cut import Cut, cut
from karui.graph.cut.partial import over_what_stays
from karui.graph.cut.removal import Removal
from karui.graph.cut.shapes import Gone, gone_of, zero_out
from karui.graph.importance import (
    by_unit,
    collect,
    norm_scales,
    norms,
    taylor,
)
from karui.graph.inspect import size_bytes
from karui.graph.latency import TIMED_LEVELS, Search, structure, widths
from karui.graph.renorm import reestimate
from karui.graph.select import (
    Ranked,
    Selection,
    allowed_counts,
    at_random,
    levels,
    named_units,
    nearest,
)
from karui.graph.sensitivity import Known, Sensitivity
from karui.graph.trace import Trace, trace, twin_of
from karui.graph.units import Units, find_units
from karui.graph.units.groups import Group, Heads, find_groups
from karui.measurement import Ratio
from karui.techniques import Applied, Given, Technique

GOALS = ("ratio", "macs", "parameters", "size", "latency", "latency_s")
BATCH = 256
HELD = 384  # calibration samples on which damage is measured
LEVELS = 64  # widths of a group to choose from


@final
@dataclass(frozen=True)
class PruneChannels(Technique):
    """A goal, and how to reach it; the defaults take half of the units of every layer.

    ratio: share of the units that goes: of each layer, or with ``scope=global`` of all together.
    macs, parameters, size: share of them that stays, or bytes of the stored numbers (200kB); layers give what
        costs the answers least.
    latency, latency_s: share of the original's latency in the recipe's runtime that stays, or seconds a
        call: narrowed copies are timed there, and the result is timed before it is taken.
    importance: obs (what the readers of a unit lose, after the others have taken over), ln (p-norm of a
        unit's weights, with ``norm`` p from 1 to inf, and ``dim`` 0 for weights that give it out or 1 for
        those that read it), taylor, norm_scale or random (``seed``).
    heads: of attention, ``dims`` narrows every head, ``whole`` takes heads out, ``both`` (with a goal over
        all layers) whatever costs least.
    protect, remove: layers whose outputs stay, or go: ``["head","conv1:0,3"]``; remove alone is done exactly.
    multiple_of: widths are multiples of it. steps: the goal is reached in so many steps.
    inexact: let units go too that a LayerNorm, GroupNorm or softmax looks at together; these then see fewer.
    compensate: refit the readers. samples: calibration samples used at most.
    """

    ratio: float | None = None
    macs: float | None = None
    parameters: float | None = None
    size: float | str | None = None
    latency: float | None = None
    latency_s: float | None = None
    scope: Literal["layer", "global"] = "layer"
    importance: Literal["obs", "ln", "taylor", "norm_scale", "random"] = "obs"
    norm: float | Literal["inf"] = 2.0
    dim: Literal[0, 1] = 0
    heads: Heads = "dims"
    protect: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    multiple_of: int = 1
    steps: int = 1
    inexact: bool = False
    compensate: bool = True
    samples: int = 1024
    seed: int = 0

    TIMED = frozenset({"latency", "latency_s"})

    def apply(self, model: nn.Module, data: Given) -> Applied:
        self.check()
        return Pruning(self, model, data).run()

    def check(self) -> None:
        """Raises UsageError for options that contradict each other or are out of range."""
        self.check_goal()
        if self.heads == "both" and self.by_layer:
            raise UsageError(
                "prune_channels:heads=both with a share of each layer would take it twice",
                fix="give macs=..., parameters=... or scope=global, or choose dims or whole",
            )
        p = float(self.norm)
        if not p >= 1:
            raise UsageError(f"prune_channels:norm must be at least 1, got {self.norm}", fix="1, 2 or inf")
        for name, value in (
            ("multiple_of", self.multiple_of),
            ("steps", self.steps),
            ("samples", self.samples),
        ):
            if value < 1:
                raise UsageError(f"prune_channels:{name} must be at least 1, got {value}")

    def check_goal(self) -> None:
        if len(self.goals) > 1:
            raise UsageError(
                f"prune_channels has several goals: {', '.join(self.goals)}", fix="give one of them"
            )
        for name, value in self.goals.items():
            if name == "size" and (isinstance(value, str) or not 0 < value < 1):
                costs.bytes_in(value)
                continue
            most = float("inf") if name == "latency_s" else 1
            if not 0 < float(value) < most:
                raise UsageError(f"prune_channels:{name} must lie between 0 and {most}, got {value}")

    @property
    def goals(self) -> dict[str, float | str]:
        found = {name: getattr(self, name) for name in GOALS}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def by_layer(self) -> bool:
        """Whether every layer gives the same share, whatever it costs."""
        return self.goals.keys() <= {"ratio"} and self.scope == "layer"


class Pruning:
    """One application: the traced model, its units, and the data."""

    def __init__(self, options: PruneChannels, model: nn.Module, given: Given) -> None:
        self.options, self.model, self.given = options, model, given
        self.trace: Trace = trace(model, given.signature, given.inputs)
        self.units: Units = find_units(self.trace, inexact=options.inexact)
        self.groups = find_groups(self.units)
        self.offered = self.groups.offered(options.heads)
        self.original: GraphModule = twin_of(self.trace.graph)
        protected = named_units(self.units, options.protect, "protect")
        self.selection = Selection(self.units, self.groups, Removal(self.units.classes, protected))
        half = -(-len(next(iter(given.calibrate.values()))) // 2)  # a fit is checked on the other half
        size = min(BATCH, max(half, 1)) if self.trace.dynamic else len(self.trace.example[0])
        self.data = [part for part in batches(given.calibrate, size, options.samples) if self.fits(part)]
        self.held = held_out(self.original, self.data[: -(-HELD // size)])
        self.products = counting.products(self.units)
        self.missed: dict[str, str] = {}
        self.search: Search | None = None
        self.known = Known(given.known)
        self.told: dict[str, str] = {}

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """A graph with a fixed batch takes no smaller one."""
        return self.trace.dynamic or len(inputs[0]) == len(self.trace.example[0])

    def run(self) -> Applied:
        bundles = self.named() if self.options.remove else self.chosen()
        if not bundles:
            return Applied(self.model, (), self.reasons({}), {})
        removed = gone_of(self.units.roots, set().union(*bundles))
        refitted = self.repair(removed)
        done = cut(self.model, self.units, bundles, self.given.inputs)
        touched = sorted({path.rpartition(".")[0] for path in done.positions})
        return Applied(done.model, tuple(touched), self.reasons(done.dropped), self.facts(done, refitted))

    def repair(self, removed: Gone) -> list[str]:
        """Zero what goes and let the rest take over; nothing is refitted when that was not asked for."""
        graph = self.trace.graph
        zero_out(graph, self.units, removed)
        if not self.options.compensate or not self.data:
            return []
        with over_what_stays(graph, self.units, removed):
            refitted = compensate(self.units, self.original, removed, self.data)
            if reestimate(graph, self.data, self.held):
                refitted.append("batch norm statistics")
        return refitted

    def named(self) -> list[set[int]]:
        """Exactly the units that were named, and what has to go with them."""
        wanted = named_units(self.units, self.options.remove, "remove")
        for unit in sorted(wanted):
            if not self.selection.removal.may_go(unit):
                why = self.units.classes.frozen.get(unit, "it is protected")
                raise UsageError("remove names a unit that cannot go", why=why)
        return self.selection.take([frozenset(wanted)])

    def chosen(self) -> list[set[int]]:
        taken: list[set[int]] = []
        for step in range(1, self.options.steps + 1):
            part = step / self.options.steps
            found = self.sensitivity()
            ranked = self.rank(found)
            counts = self.counts(ranked, found, part)
            new = [bundle for one in ranked for bundle in one.bundles[: counts[one.group.name]]]
            taken += self.selection.take(new)
            if step < self.options.steps:
                self.repair(gone_of(self.units.roots, self.selection.gone))
        return taken

    def sensitivity(self) -> Sensitivity | None:
        """Of the model as it stands, where the options ask for it."""
        if self.options.importance != "obs" and self.options.by_layer:
            return None
        if not self.data:
            raise UsageError(
                "prune_channels needs calibration data", fix="give calibrate=..., or importance=ln"
            )
        statistics = cache(lambda: collect(self.units, self.trace.graph, self.offered, self.data))
        return Sensitivity(self.units, self.data, self.held, self.known, statistics, self.told)

    @property
    def ratio(self) -> float:
        """Share of the units that goes, where that is the goal: half without another one."""
        return 0.5 if self.options.ratio is None else self.options.ratio

    @property
    def timed(self) -> bool:
        return self.options.latency is not None or self.options.latency_s is not None

    def rank(self, found: Sensitivity | None) -> list[Ranked]:
        """All groups with their bundles; one whose units go with those of an earlier group is left out."""
        tables = self.gradients()
        ranks: list[Ranked] = []
        covered: set[int] = set()
        for group in self.offered:
            if covered.intersection(group.units):
                continue
            scores = self.scores(group, found, tables)
            ranked = self.selection.ranked(group, scores, self.options.multiple_of)
            if ranked.bundles:
                ranks.append(ranked)
                covered = covered.union(*ranked.bundles)
        return ranks

    def gradients(self) -> Mapping[int, float]:
        if self.options.importance != "taylor":
            return {}
        return taylor(self.units, self.trace.graph, self.offered, self.data)

    def scores(
        self, group: Group, found: Sensitivity | None, tables: Mapping[int, float]
    ) -> Mapping[int, float]:
        kind, graph = self.options.importance, self.trace.graph
        if kind == "random":
            return at_random(group, self.options.seed)
        if kind == "taylor":
            return by_unit(group, tables)
        if kind == "norm_scale":
            return norm_scales(self.units, graph, group)
        if kind == "ln" or found is None:
            return norms(self.units, graph, group, float(self.options.norm), self.options.dim)
        return found.scores(group, self.limit(group))

    def limit(self, group: Group) -> int:
        """How many units may go at most."""
        return round(self.ratio * len(group.units)) + 1 if self.options.by_layer else len(group.units)

    def counts(self, ranked: Sequence[Ranked], found: Sensitivity | None, part: float) -> Mapping[str, int]:
        """How many bundles each group loses in this step."""
        options = self.options
        if self.options.by_layer:
            return {
                one.group.name: nearest(
                    allowed_counts(one, options.multiple_of), self.share(one, self.ratio * part)
                )
                for one in ranked
            }
        assert found is not None
        most = TIMED_LEVELS if self.timed else LEVELS
        curves = [found.curve(one, levels(one, options.multiple_of, most)) for one in ranked]
        if self.timed:
            return self.fast_enough(ranked, curves, part)
        name, value = next(iter(self.options.goals.items()), ("ratio", self.ratio))
        goal = costs.goal_of(name, value, self.offered, (self.units, size_bytes(self.model)))
        limit = goal.limit(part)
        counts = spend(curves, goal.cost, limit, self.selection.gone)
        removed = self.selection.gone.union(*(one.removed(counts[one.group.name]) for one in curves))
        self.missed = goal.missed(removed, limit)
        return counts

    def fast_enough(
        self, ranked: Sequence[Ranked], curves: Sequence[Curve], part: float
    ) -> Mapping[str, int]:
        """Counts that reach the latency: predicted, and in the last step timed."""
        goal = 1 - part * (1 - self.share_of_latency())
        self.search = search = Search(self.units, self.products, ranked, self.selection.after, self.time)
        search.probe()
        return search.reach(curves, goal) if part == 1 else search.spend(curves, goal)

    def share_of_latency(self) -> float:
        """The goal; UsageError where there is no runtime to time on, or nothing to do."""
        if self.given.clock is None:
            raise UsageError(
                "prune_channels has a latency goal but no runtime to time on",
                fix="use it in a recipe: prune_channels:latency=0.5 + fp32@onnxruntime",
            )
        if self.options.latency_s is None:
            assert self.options.latency is not None
            return self.options.latency
        now = self.given.clock.original_s()
        if self.options.latency_s >= now:
            raise Unsupported(
                f"the original is within {self.options.latency_s:g} s already", why=f"it takes {now:.3g} s"
            )
        return self.options.latency_s / now

    def time(self, sets: Sequence[set[int]], careful: bool) -> list[Ratio | None]:
        """How many times faster the model is without each of ``sets``; None where it does not run."""
        assert self.given.clock is not None
        start = f"{structure(self.units)}:"
        names = [start + widths(self.groups.of, removed) for removed in sets]
        variants = {name: partial(self.without, removed) for name, removed in zip(names, sets)}
        found = self.given.clock.ratios(variants, careful)
        return [found.get(name) for name in names]

    def without(self, removed: set[int]) -> nn.Module:
        """As it stands, without refitting: for timing only."""
        done = cut(self.model, self.units, [removed], self.given.inputs)
        if not done.removed:
            raise Unsupported("these units cannot go together", why=next(iter(done.dropped.values()), ""))
        return done.model

    def share(self, one: Ranked, ratio: float) -> int:
        """Bundles that come nearest to this share of the group, in units, less what is gone already."""
        units = set(one.group.units)
        wanted = ratio * len(units) - len(units & self.selection.gone)
        lost = [0, *accumulate(len(bundle & units) for bundle in one.bundles)]
        return min(range(len(lost)), key=lambda count: (abs(lost[count] - wanted), count))

    def reasons(self, dropped: Mapping[int, str]) -> dict[str, str]:
        """Why axes of parameters kept all of their units."""
        named = {
            group.name: dropped[unit] for group in self.groups.of for unit in group.units if unit in dropped
        }
        return {**self.groups.stays, **named, **self.missed}

    def facts(self, done: Cut, refitted: Sequence[str]) -> dict[str, Any]:
        roots = self.units.roots
        before, after = gone_of(roots, ()), gone_of(roots, done.removed)
        with over_what_stays(self.trace.graph, self.units, after):
            moved = damage(self.trace.graph, self.held) if self.data else None
        cost = costs.macs(self.units)
        left = {one.name: len(set(one.units) - done.removed) for one in self.offered}
        return {
            "form": done.form,
            "cut_error": done.error,
            "macs": [counting.total(self.products, before), counting.total(self.products, after)],
            "parameters": [counting.parameters(self.units, before), counting.parameters(self.units, after)],
            "sibling": costs.sibling(self.offered, cost, cost.without(done.removed)),
            "kept": {one.name: f"{left[one.name]} of {len(one.units)}" for one in self.offered},
            "positions": dict(done.positions),
            "refitted": list(refitted),
            "sensitivity": self.told,
            **self.timings(),
            "damage": moved,
            "inexact": list(done.inexact),
        }

    def timings(self) -> dict[str, Any]:
        """Of a latency goal: what was predicted and timed, and what widths cost that are no multiples."""
        if self.search is None:
            return {}
        return {"latency": self.search.told(), "stairs": self.search.stairs.penalties}
