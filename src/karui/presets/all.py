"""Every target at once: what each preset lists, one after the other."""

from __future__ import annotations

from karui.budget import Budget
from karui.presets import cpu, edge, mobile
from karui.recipe import Recipe


def recipes(budget: Budget) -> list[Recipe]:
    """The recipes of all presets, each once."""
    return list(dict.fromkeys(recipe for preset in (cpu, edge, mobile) for recipe in preset.recipes(budget)))
