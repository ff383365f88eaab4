"""A board with an ARM or x86 CPU and no accelerator: small runtimes that read one file."""

from __future__ import annotations

from karui.budget import Budget
from karui.numerics import PRECISIONS, WEIGHT_BITS
from karui.presets import _narrower, _spaces
from karui.recipe import Recipe, parse_recipe
from karui.space import Space

RUNTIMES = ("onnxruntime", "executorch", "litert")
COMPUTED = tuple(precision for precision in PRECISIONS if precision not in WEIGHT_BITS)
PACKED = ("onnxruntime",)  # files that store what is not zero


def recipes(budget: Budget, *, trains: bool = False) -> list[Recipe]:
    """Every runtime with every precision, then narrower networks. A limit on the latency is a goal too.

    trains: narrower networks are also trained.
    """
    grid = [f"{precision}@{runtime}" for precision in COMPUTED for runtime in RUNTIMES]
    limit = budget.max_latency_s
    goal = [f"prune_channels:latency_s={limit} + int8@{runtime}" for runtime in RUNTIMES] if limit else []
    smaller = _narrower.zeros(PACKED, budget)
    narrower = _narrower.calibrated(RUNTIMES) + (_narrower.trained(RUNTIMES, budget) if trains else [])
    return [parse_recipe(text) for text in dict.fromkeys([*grid, *goal, *smaller, *narrower])]


def space(budget: Budget, *, trains: bool = False) -> Space:
    return _spaces.composed(RUNTIMES, COMPUTED, budget, trains=trains)
