"""Every target at once: what each preset lists, one after the other."""

from __future__ import annotations

import itertools

from karui.budget import Budget
from karui.presets import _spaces, browser, cpu, edge, gpu, mobile
from karui.recipe import Recipe
from karui.space import Space


def recipes(budget: Budget, *, trains: bool = False) -> list[Recipe]:
    """The recipes of all presets, each once. trains: narrower networks are also trained."""
    every = (preset.recipes(budget, trains=trains) for preset in (cpu, edge, mobile, browser, gpu))
    return list(dict.fromkeys(itertools.chain.from_iterable(every)))


def space(budget: Budget, *, trains: bool = False) -> Space:
    """Of the runtimes and precisions of all."""
    every = [preset.space(budget, trains=trains) for preset in (cpu, edge, mobile, browser, gpu)]
    runtimes = dict.fromkeys(name for space in every for name in space.runtimes)
    precisions = dict.fromkeys(name for space in every for name in space.precisions)
    return _spaces.composed(tuple(runtimes), tuple(precisions), budget, trains=trains)
