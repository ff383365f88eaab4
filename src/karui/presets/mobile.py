"""A phone: the runtimes that apps ship. Times are of this machine, by the same kernels on another CPU."""

from __future__ import annotations

from karui.budget import Budget
from karui.numerics import PRECISIONS
from karui.presets import _narrower, _spaces
from karui.recipe import Recipe, parse_recipe
from karui.space import Space

RUNTIMES = ("executorch", "litert", "coreml")
NARROWED = ("executorch", "litert")


def recipes(budget: Budget, *, trains: bool = False) -> list[Recipe]:
    """Every runtime with every precision, then narrower networks. A limit on the latency is a goal too.

    trains: narrower networks are also trained.
    """
    grid = [f"{precision}@{runtime}" for runtime in RUNTIMES for precision in PRECISIONS]
    grid += ["int8_weights@coreml:palette=6", "int8_weights@coreml:palette=4"]
    limit = budget.max_latency_s
    goal = [
        f"prune_channels:latency_s={limit} + {precision}@{runtime}"
        for precision in ("fp32", "int8")
        for runtime in (NARROWED if limit else ())
    ]
    narrower = _narrower.calibrated(NARROWED) + (_narrower.trained(NARROWED, budget) if trains else [])
    return [parse_recipe(text) for text in dict.fromkeys([*grid, *goal, *narrower])]


def space(budget: Budget, *, trains: bool = False) -> Space:
    return _spaces.composed(NARROWED, PRECISIONS, budget, trains=trains)
