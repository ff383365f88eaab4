"""Where to look next in a space of recipes too large to try: what was measured, taught to a sampler.

All trials are replayed into a study of Optuna, whose Gaussian process models how costly a recipe is and
whether it holds the budget (Gardner et al. 2014, expected improvement under constraints). Nothing is kept
between two proposals: the same trials and the same seed give the same recipe.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import optuna

from karui.measurement import Trial
from karui.search.enumerate import Aim, cost_of, log_cost
from karui.search.screen import Screened, expected, left
from karui.space import Point, Space

AS_IF = -1.0  # of ``missed``: what is being tried is taken for usual in cost, and within the budget
VAIN = 8  # times at most that it may ask for what there is not
HOPELESS = 3.0  # of ``missed``: what failed is as bad as a drop of twenty times the budget


def propose(
    space: Space,
    allowed: Mapping[Point, str],
    trials: Sequence[Trial],
    aim: Aim,
    pending: Sequence[Point] = (),
    looks: Mapping[Point, Screened] = MappingProxyType({}),
) -> Point | None:
    """The next point of ``allowed`` (points and their recipes) that no trial has; None when there is none.

    pending: points that are being tried. looks: what others showed with little training.
    """
    tried = {trial.recipe: trial for trial in trials}
    free = [point for point, recipe in allowed.items() if recipe not in tried and point not in pending]
    if not free:
        return None
    known = {point: tried[recipe] for point, recipe in allowed.items() if recipe in tried}
    share = left(list(looks.values()), trials)
    others = {point: one for point, one in looks.items() if point not in known and point not in pending}
    costs = {point: cost_of(one.look, aim.objective) for point, one in others.items()}
    costs |= {point: log_cost(trial, aim.objective) for point, trial in known.items()}
    missing = {point: guessed(one, share, aim.drop) for point, one in others.items()}
    missing |= {point: missed(trial, aim.drop) for point, trial in known.items()}
    figures = {point: (costs[point], missing[point]) for point in costs}
    ways = {point[-2:] for point in allowed}
    return nearest(space, asked(space, figures, ways, pending, aim.seed), free)


def asked(
    space: Space,
    known: Mapping[Point, tuple[float | None, float]],
    ways: Collection[Point],
    pending: Sequence[Point],
    seed: int,
) -> Point:
    """What the sampler would try, which may be known.

    known: costs (None where there is none) and by how much the budget was missed. ways: precisions and
    runtimes that go together. Told nothing of the others it asks for them again and again: what is never
    tried never disappoints. So what it asks for in vain is told as failed.
    """
    costs = [cost for cost, _ in known.values() if cost is not None]
    worst, usual = max(costs, default=0.0), statistics.fmean(costs or [0.0])
    told = {point: (worst if cost is None else cost, drop) for point, (cost, drop) in known.items()}
    told |= dict.fromkeys(pending, (usual, AS_IF))
    number = seed + len(told)
    point = asked_once(space, told, number)
    for _ in range(VAIN):
        if point[-2:] in ways:
            break
        told[point] = worst, HOPELESS
        point = asked_once(space, told, number)
    return point


def asked_once(space: Space, told: Mapping[Point, tuple[float, float]], seed: int) -> Point:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
    levels = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study, kinds = optuna.create_study(sampler=sampler), distributions(space)
        for point, (cost, drop) in told.items():
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(zip(kinds, choices(space, point), strict=True)),
                    distributions=kinds,
                    value=cost,
                    constraints={"drop": drop},
                )
            )
        found = study.ask(kinds).params
    finally:
        optuna.logging.set_verbosity(levels)
    return tuple(
        found[axis.name] if axis.ordered else axis.choices.index(found[axis.name]) for axis in space.axes
    )


def distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    return {
        axis.name: optuna.distributions.IntDistribution(0, len(axis.choices) - 1)
        if axis.ordered
        else optuna.distributions.CategoricalDistribution(axis.choices)
        for axis in space.axes
    }


def choices(space: Space, point: Point) -> list[int | str]:
    """A point as the sampler has it: places on ordered axes, names on others."""
    return [
        place if axis.ordered else axis.choices[place] for axis, place in zip(space.axes, point, strict=True)
    ]


def missed(trial: Trial, drop: float) -> float:
    """By how much the budget was missed, negative where it was held; squashed, for chance is chance."""
    quality = trial.measurement.quality if trial.measurement else None
    if trial.status == "failed" or quality is None:
        return HOPELESS
    found = beyond(quality.drop, drop)
    return found if trial.kept or found > 0 else 0.1  # inside by luck: not surely


def guessed(one: Screened, share: float, drop: float) -> float:
    """The same of a recipe that had little training, of whose loss that share may stay."""
    return HOPELESS if one.quality is None else beyond(expected(one.quality, share), drop)


def beyond(lost: float, drop: float) -> float:
    over = (lost - drop) / max(drop, 1e-3)
    return math.copysign(math.log1p(abs(over)), over)


def nearest(space: Space, point: Point, left: Sequence[Point]) -> Point:
    """Of ``left`` the point that differs least: first on few axes, then by few places."""

    def distance(other: Point) -> tuple[float, Point]:
        steps = (
            abs(a - b) / len(axis.choices) if axis.ordered else float(a != b)
            for axis, a, b in zip(space.axes, point, other, strict=True)
        )
        return sum(steps), other

    return min(left, key=distance)
