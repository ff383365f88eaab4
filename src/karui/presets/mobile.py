"""A phone: the runtimes that apps ship. Times are of this machine, by the same kernels on another CPU."""

from __future__ import annotations

from karui.budget import Budget
from karui.numerics import PRECISIONS
from karui.recipe import Recipe, parse_recipe

RUNTIMES = ("executorch", "coreml")
NARROWER = tuple(
    f"prune_channels:macs={share},multiple_of=8 + {precision}@executorch"
    for share in ("0.75", "0.5", "0.25")
    for precision in ("fp32", "int8")
)


def recipes(budget: Budget) -> list[Recipe]:
    """Every runtime with every precision, then narrower networks. A limit on the latency is a goal too."""
    grid = [f"{precision}@{runtime}" for runtime in RUNTIMES for precision in PRECISIONS]
    grid += ["int8_weights@coreml:palette=6", "int8_weights@coreml:palette=4"]
    limit = budget.max_latency_s
    goal = [f"prune_channels:latency_s={limit} + {p}@executorch" for p in ("fp32", "int8")] if limit else []
    return [parse_recipe(text) for text in dict.fromkeys([*grid, *goal, *NARROWER])]
