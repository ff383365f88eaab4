"""Every target at once: what each preset lists, one after the other."""

from __future__ import annotations

import itertools

from karui.budget import Budget
from karui.presets import cpu, edge, mobile
from karui.recipe import Recipe


def recipes(budget: Budget, *, trains: bool = False) -> list[Recipe]:
    """The recipes of all presets, each once. trains: narrower networks are also trained."""
    every = (preset.recipes(budget, trains=trains) for preset in (cpu, edge, mobile))
    return list(dict.fromkeys(itertools.chain.from_iterable(every)))
