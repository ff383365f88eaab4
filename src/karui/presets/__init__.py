"""Presets: for each target, a short function that lists the recipes to try, cheap and likely first."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from karui.budget import Budget
from karui.errors import UsageError
from karui.recipe import Recipe
from karui.space import Space


def names() -> list[str]:
    """Targets that have a preset: one file each."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def recipes(target: str, budget: Budget, *, trains: bool = False) -> list[Recipe]:
    """The recipes to try on ``target``, in order. trains: whether there are data to train on."""
    found: list[Recipe] = preset(target).recipes(budget, trains=trains)
    return found


def space(target: str, budget: Budget, *, trains: bool = False) -> Space:
    """What a search on ``target`` composes recipes of."""
    found: Space = preset(target).space(budget, trains=trains)
    return found


def preset(target: str) -> ModuleType:
    if target not in names():
        raise UsageError(f"no target {target!r}", fix=f"one of: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{target}")
