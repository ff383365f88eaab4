"""Prune a little, recover, and again: farther than one cut goes, with the curve of what each round cost.

Han et al. 2015, arXiv:1506.02626; the learning rate starts high again in each round (learning-rate
rewinding): Renda et al. 2020, arXiv:2003.02389.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
from torch import nn

from karui.errors import Unsupported, UsageError
from karui.graph.call import run_all
from karui.graph.goals import Schedule, goal_of, stays_after, towards
from karui.graph.inspect import private_copy, sparsity
from karui.recipe import Named, parse_named
from karui.techniques import Applied, Given, Technique, load

if TYPE_CHECKING:
    from karui.data import Array

LOOKED_AT = 512  # samples, held out from calibration, on which answers are compared
SHARE = 0.2  # of the calibration data at most that is held out so


@final
@dataclass(frozen=True)
class Iterative(Technique):
    """``rounds`` of one step that prunes and one that trains, both as in recipes.

    prune: its one goal (sparsity, ratio, macs or parameters) is reached in the last round; schedule: linear,
    cubic (much at first) or geometric (of what is left, the same share each time). recover: of several, all
    follow the first cut, and the one whose answers come closest to the original's follows the others; none
    at all for no training. max_change: stop, and keep the last model that held it, when more than so many
    percent of the answers have changed on calibration samples that no step has seen.
    """

    TRAINS = True

    prune: str = "prune_weights:sparsity=0.8"
    recover: tuple[str, ...] = ("finetune:steps=100",)
    rounds: int = 3
    schedule: Schedule = "cubic"
    max_change: float | None = None

    def apply(self, model: nn.Module, data: Given) -> Applied:
        self.check()
        return Rounds(self, model, data).run()

    def check(self) -> None:
        """Raises UsageError for steps that cannot be run or numbers out of range."""
        if self.rounds < 1:
            raise UsageError(f"iterative:rounds must be at least 1, got {self.rounds}")
        if self.max_change is not None and not 0 <= self.max_change <= 100:
            raise UsageError(f"iterative:max_change is a percentage, not {self.max_change:g}")
        goal_of(parse_named(self.prune))
        for text in (self.prune, *self.recover):
            if isinstance(load(parse_named(text)), Iterative):
                raise UsageError("iterative repeats other steps, not itself")


@dataclass(frozen=True)
class Point:
    """One round: what it made of the model, and its account."""

    model: nn.Module
    touched: frozenset[str]
    skipped: dict[str, str]
    told: dict[str, Any]


class Rounds:
    """One application."""

    def __init__(self, options: Iterative, model: nn.Module, given: Given) -> None:
        self.options, self.step = options, parse_named(options.prune)
        teacher = given.teacher or private_copy(model)
        rows = len(next(iter(given.calibrate.values())))
        held = min(LOOKED_AT, int(SHARE * rows)) or rows
        self.held = {name: array[rows - held :] for name, array in given.calibrate.items()}
        seen = {name: array[: rows - held or rows] for name, array in given.calibrate.items()}
        self.given = replace(given, calibrate=seen, teacher=teacher)
        self.wanted = self.answers(teacher)
        self.start = model
        self.recover = [parse_named(text) for text in options.recover]

    def answers(self, model: nn.Module) -> list[Array]:
        return run_all(model, self.given.signature.style, self.held)

    def run(self) -> Applied:
        points: list[Point] = []
        stopped = None
        for number in range(1, self.options.rounds + 1):
            before = points[-1].model if points else self.start
            point = self.round(number, before)
            limit = self.options.max_change
            if limit is not None and point.told["changed_percent"] > limit:
                stopped = f"round {number} changed {point.told['changed_percent']:.2f} % of the answers"
                break
            points.append(point)
        if not points:
            return Applied(
                self.start, (), {"the model": f"{stopped}, more than max_change={self.options.max_change:g}"}
            )
        return self.account(points, stopped)

    def round(self, number: int, model: nn.Module) -> Point:
        """``model`` stays as it is: a round that goes too far is not the last word."""
        _, end = goal_of(self.step)
        before, after = (
            stays_after(self.options.schedule, end, done / self.options.rounds)
            for done in (number - 1, number)
        )
        cut = self.applied(towards(self.step, before, after), private_copy(model), f"{number}-prune")
        told: dict[str, Any] = {"stays": after, "changed_by_pruning_percent": self.changed(cut.model)}
        tried = self.recovered(cut.model, number, told)
        if len(tried) > 1:
            told["recovered_by"] = {str(step): self.changed(done.model) for step, done in tried}
        step, best = min(tried, key=lambda one: self.changed(one[1].model)) if tried else (None, cut)
        self.recover = self.recover if step is None else [step]
        told |= {"changed_percent": self.changed(best.model), "zeros": sparsity(best.model)}
        touched = frozenset(cut.touched) | frozenset(best.touched)
        return Point(best.model, touched, {**cut.skipped, **best.skipped}, told)

    def recovered(self, model: nn.Module, number: int, told: dict[str, Any]) -> list[tuple[Named, Applied]]:
        """What each way to recover makes of ``model``; one that has nothing to learn is told and left out."""
        found = []
        for place, step in enumerate(self.recover):
            try:
                found.append((step, self.applied(step, private_copy(model), f"{number}-{place}")))
            except Unsupported as refused:
                told.setdefault("not_recovered", {})[str(step)] = refused.line
        return found

    def applied(self, step: Named, model: nn.Module, place: str) -> Applied:
        folder = self.given.folder
        given = replace(self.given, folder=None if folder is None else folder / f"round-{place}")
        return load(step).apply(model, given)

    def changed(self, model: nn.Module) -> float:
        return changed_percent(self.answers(model), self.wanted)

    def account(self, points: Sequence[Point], stopped: str | None) -> Applied:
        last = points[-1]
        touched = frozenset[str]().union(*(point.touched for point in points))
        paths = {path for path, _ in last.model.named_modules()}
        facts = {
            "rounds": [point.told for point in points],
            "changed_percent": last.told["changed_percent"],
            "curve": {f"{point.told['stays']:.3f}": point.told["changed_percent"] for point in points},
            "recover": [str(step) for step in self.recover],
            "stopped": stopped,
        }
        return Applied(last.model, tuple(sorted(touched & paths)), last.skipped, facts)


def changed_percent(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Of samples with another class, for class scores; of other answers' variance, the squared change."""
    parts = [
        share(one.astype(np.float64), other.astype(np.float64))
        for one, other in zip(found, wanted, strict=True)
        if other.dtype.kind == "f"
    ]
    return 100 * max(parts, default=0.0)


def share(one: Array, other: Array) -> float:
    if other.ndim == 2 and other.shape[1] > 1:
        return float((one.argmax(1) != other.argmax(1)).mean())
    return float(np.square(one - other).mean() / max(other.var(), 1e-12))
