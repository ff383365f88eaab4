"""Try a list in order, each recipe once; stop early when a goal is met."""

from __future__ import annotations

from collections.abc import Sequence

from karui.measurement import Trial
from karui.recipe import Recipe


def propose(recipes: Sequence[Recipe], trials: Sequence[Trial]) -> Recipe | None:
    """The first recipe not tried yet."""
    return next(iter(untried(recipes, trials)), None)


def untried(recipes: Sequence[Recipe], trials: Sequence[Trial]) -> list[Recipe]:
    tried = {trial.recipe for trial in trials}
    return [recipe for recipe in recipes if str(recipe) not in tried]


def goal_met(trials: Sequence[Trial], baseline: str, goal: float | None) -> Trial | None:
    """The first kept trial whose speed-up is surely at least ``goal`` times the baseline's."""
    if goal is None:
        return None
    sure = (t for t in trials if t.kept and t.measurement and t.measurement.speedup)
    return next((t for t in sure if t.id != baseline and t.measurement.speedup.low >= goal), None)  # type: ignore[union-attr]
