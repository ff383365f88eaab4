"""Try a list in order, each recipe once; stop early when a goal is met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from karui.budget import Objective
from karui.measurement import Measurement, Trial
from karui.recipe import Recipe


@dataclass(frozen=True)
class Aim:
    """What a search is after.

    drop: what may be lost, in the score's own unit. objective: what shall be least.
    """

    drop: float
    objective: Objective = "latency"
    seed: int = 0


def untried(recipes: Sequence[Recipe], trials: Sequence[Trial]) -> list[Recipe]:
    """Those that no trial has, in order."""
    tried = {trial.recipe for trial in trials}
    return [recipe for recipe in recipes if str(recipe) not in tried]


def goal_met(trials: Sequence[Trial], baseline: str, goal: float | None) -> Trial | None:
    """The first kept trial whose speed-up is surely at least ``goal`` times the baseline's."""
    if goal is None:
        return None
    sure = (t for t in trials if t.kept and t.measurement and t.measurement.speedup)
    return next((t for t in sure if t.id != baseline and t.measurement.speedup.low >= goal), None)  # type: ignore[union-attr]


def log_cost(trial: Trial, objective: Objective) -> float | None:
    """What shall become least, as a logarithm; None for what was not measured."""
    return cost_of(trial.measurement, objective)


def cost_of(found: Measurement | None, objective: Objective) -> float | None:
    if found is None or found.timing is None or found.speedup is None:
        return None
    if objective == "latency":
        return -math.log(found.speedup.ratio)
    return math.log(max(1, found.size_bytes if objective == "size" else found.timing.peak_memory_bytes))


def cost_bounds(found: Measurement | None, objective: Objective) -> tuple[float, float] | None:
    """Between which the cost lies; only times are uncertain."""
    cost = cost_of(found, objective)
    if found is None or found.speedup is None or cost is None:
        return None
    if objective == "latency":
        return -math.log(found.speedup.high), -math.log(found.speedup.low)
    return cost, cost
