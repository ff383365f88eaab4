"""A board with an ARM or x86 CPU and no accelerator: small runtimes that read one file."""

from __future__ import annotations

from karui.budget import Budget
from karui.numerics import PRECISIONS
from karui.recipe import Recipe, parse_recipe

RUNTIMES = ("onnxruntime", "executorch")
NARROWER = tuple(
    f"prune_channels:macs={share},multiple_of=8 + {precision}@{runtime}"
    for share in ("0.75", "0.5", "0.25")
    for precision in ("fp32", "int8")
    for runtime in RUNTIMES
)


def recipes(budget: Budget) -> list[Recipe]:
    """Every runtime with every precision, then narrower networks. A limit on the latency is a goal too."""
    precisions = [precision for precision in PRECISIONS if precision != "int8_weights"]
    grid = [f"{precision}@{runtime}" for precision in precisions for runtime in RUNTIMES]
    limit = budget.max_latency_s
    goal = [f"prune_channels:latency_s={limit} + int8@{runtime}" for runtime in RUNTIMES] if limit else []
    return [parse_recipe(text) for text in dict.fromkeys([*grid, *goal, *NARROWER])]
