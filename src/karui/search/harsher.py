"""What need not be tried: a harsher cut of what already lost too much."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from karui.errors import UsageError
from karui.graph.goals import goal_of
from karui.measurement import Trial
from karui.recipe import Named, Recipe, parse_recipe

read = lru_cache(1024)(parse_recipe)  # of few trials, for each of hundreds of recipes


def pointless(recipe: Recipe, trials: Sequence[Trial]) -> str:
    """Why ``recipe`` cannot hold the accuracy budget, by a milder one that surely did not; else empty."""
    for trial in trials:
        quality = trial.measurement.quality if trial.measurement else None
        if quality and quality.verdict == "over" and harsher(recipe, read(trial.recipe)):
            return f"goes farther than {trial.recipe}, which is over the accuracy budget"
    return ""


def harsher(recipe: Recipe, other: Recipe) -> bool:
    """Whether ``recipe`` does all that ``other`` does to the answers, or more, and mends nothing.

    FP32 alone changes none, on any runtime; where it lost, the runtime is to blame.
    """
    same = recipe.numerics == other.numerics and recipe.runtime == other.runtime
    if recipe == other or not (same or (other.steps and str(other.numerics) == "fp32")):
        return False
    mine = {step.name: step for step in recipe.steps}
    theirs = {step.name: step for step in other.steps}
    more = [mine[name] for name in mine if name not in theirs]
    shared = all(name in mine and farther(mine[name], step) for name, step in theirs.items())
    return shared and all(map(prunes, more))


def farther(step: Named, other: Named) -> bool:
    """Whether ``step`` is ``other``, or has the same options and leaves less."""
    if step == other:
        return True
    if not (prunes(step) and prunes(other)):
        return False
    (goal, stays), (other_goal, other_stays) = goal_of(step), goal_of(other)
    rest, other_rest = dict(step.options), dict(other.options)
    rest.pop(goal), other_rest.pop(other_goal)
    return goal == other_goal and rest == other_rest and stays <= other_stays


def prunes(step: Named) -> bool:
    try:
        goal_of(step)
    except UsageError:
        return False
    return True
