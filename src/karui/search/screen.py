"""Recipes that train, looked at with little training first: which of several is worth the whole.

A look is a build and a run as any other, with less of the training, of the data and of the rounds. Speed and
size are nearly those of the whole; accuracy is not, for training is what brings it back. So what was lost is
compared among siblings, which were all trained as little, and never with what a trial lost or with the budget
as it stands: how much of a loss the rest of a training leaves is learned from the recipes that had both.
Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) with one rung.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from karui import techniques
from karui.measurement import Measurement, Quality, Trial
from karui.recipe import Named, Recipe
from karui.search.enumerate import Aim, cost_bounds, cost_of
from karui.search.harsher import harsher, read

LEFT = 1 / 3  # of a loss, by the whole training, before any recipe had both: a tenth of it, and a square root
FAR = 20.0  # times what may be lost
NEAR = 0.05  # of a cost: few rounds, and one opening
FAR_OFF = "loses far more than"


@dataclass(frozen=True)
class Screened:
    """What a recipe showed with the share ``effort`` of its training; no measurement of it.

    look: on parts of the data, in few rounds; None where there was none. failure: why it cannot be built or
    verified, or an empty string.
    """

    recipe: str
    effort: float
    look: Measurement | None = None
    failure: str = ""

    @property
    def quality(self) -> Quality | None:
        return self.look.quality if self.look else None


@lru_cache(4096)
def trains(recipe: Recipe) -> bool:
    return any(techniques.find(step.name).TRAINS for step in recipe.steps)


def trained(trials: Sequence[Trial]) -> Mapping[tuple[Named, ...], Trial]:
    """By steps, the trials that had to train: further ones with the same steps take what there is."""
    found: dict[tuple[Named, ...], Trial] = {}
    for trial in trials:
        if trains(read(trial.recipe)):
            found.setdefault(read(trial.recipe).steps, trial)
    return found


def costly(recipe: Recipe, trials: Sequence[Trial]) -> bool:
    """Whether it would have to train; what need not is as quickly tried as looked at."""
    return trains(recipe) and recipe.steps not in trained(trials)


def pays(wide: int, known: Sequence[Screened], trials: Sequence[Trial]) -> bool:
    """Whether looks at ``wide`` recipes take less than the trials that they may save, by what builds took."""
    looks = [one.look.build_s for one in known if one.look]
    wholes = [trial.measurement.build_s for trial in trained(trials).values() if trial.measurement]
    if not looks or not wholes:
        return True
    return wide * statistics.fmean(looks) < (wide - 1) * statistics.fmean(wholes)


def choose(
    field: Sequence[Screened], known: Sequence[Screened], trials: Sequence[Trial], aim: Aim
) -> tuple[list[str], dict[str, str]]:
    """Recipes of ``field`` that may go on, the best first, and why the others are out for good.

    known: all that were looked at so far, those of ``field`` as well.
    """
    out: dict[str, str] = {}
    for one in field:
        if reason := failed(one) or behind(one, trials, aim) or beaten(one, field, known, trials, aim):
            out[one.recipe] = f"screened out: {reason}"
    share = left(known, trials)

    def order(one: Screened) -> tuple[int, float]:
        cost = cost_of(one.look, aim.objective)
        if one.quality is None:
            return 2, 0.0
        holds = expected(one.quality, share) <= aim.drop
        return (0, math.inf if cost is None else cost) if holds else (1, one.quality.drop)

    return [one.recipe for one in sorted(field, key=order) if one.recipe not in out], out


def failed(one: Screened) -> str:
    return f"it failed: {one.failure}" if one.failure else ""


def behind(one: Screened, trials: Sequence[Trial], aim: Aim) -> str:
    """A cost that is surely above that of a kept trial: whatever training brings, it is not the best."""
    mine = cost_bounds(one.look, aim.objective)
    for trial in trials:
        theirs = cost_bounds(trial.measurement, aim.objective) if trial.kept else None
        if mine and theirs and theirs[1] + NEAR < mine[0]:
            return f"{dearer(aim)} than {trial.recipe}, which is kept"
    return ""


def beaten(
    one: Screened, field: Sequence[Screened], known: Sequence[Screened], trials: Sequence[Trial], aim: Aim
) -> str:
    """A sibling surely loses less, and this one is either far off or costs surely more."""
    if one.quality is None:
        return ""
    sound = [other for other in field if not other.failure]
    better = [o for o in sound if o.quality and o.quality.high < one.quality.low]
    limit = max(FAR * max(aim.drop, 1e-3), worst_kept(known, trials))
    if better and one.quality.low > limit:
        return f"{FAR_OFF} {better[0].recipe}"
    mine = cost_bounds(one.look, aim.objective)
    for other in better:
        theirs = cost_bounds(other.look, aim.objective)
        if mine and theirs and theirs[1] < mine[0]:
            return f"{dearer(aim)} than {other.recipe}, and loses more"
    return ""


def dearer(aim: Aim) -> str:
    return {"latency": "slower", "size": "larger", "memory": "takes more memory"}[aim.objective]


def worst_kept(known: Sequence[Screened], trials: Sequence[Trial]) -> float:
    """The most that a look showed as lost of a recipe whose trial was kept all the same."""
    kept = {trial.recipe for trial in trials if trial.kept}
    return max((one.quality.drop for one in known if one.quality and one.recipe in kept), default=0.0)


def left(known: Sequence[Screened], trials: Sequence[Trial]) -> float:
    """The share of a loss that is still there after the whole training, 0..1."""
    wholes = {t.recipe: t.measurement.quality for t in trials if t.measurement and t.measurement.quality}
    pairs = [(one.quality, wholes[one.recipe]) for one in known if one.quality and one.recipe in wholes]
    shares = [min(max(whole.drop / look.drop, 0.0), 1.0) for look, whole in pairs if look.low > 0]
    return statistics.fmean([LEFT, *shares])


def expected(quality: Quality, share: float) -> float:
    """What may be lost after the whole training; a gain is taken for chance."""
    return share * max(quality.drop, 0.0)


def farther(recipe: Recipe, out: Mapping[str, str]) -> str:
    """Why a harsher cut than one that was far off need not be looked at; else empty."""
    for other, reason in out.items():
        if FAR_OFF in reason and harsher(recipe, read(other)):
            return f"goes farther than {other}, which was screened out"
    return ""
