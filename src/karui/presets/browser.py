"""A web page: ONNX Runtime Web, by WebAssembly and by WebGPU. Times are of Chromium on this machine."""

from __future__ import annotations

from karui.budget import Budget
from karui.numerics import PRECISIONS, WEIGHT_BITS
from karui.presets import _narrower, _spaces
from karui.recipe import Recipe, parse_recipe
from karui.space import Space

RUNTIMES = ("ort_web",)
COMPUTED = tuple(precision for precision in PRECISIONS if precision not in WEIGHT_BITS)
GPU = ("fp32@ort_web:provider=webgpu", "fp16@ort_web:provider=webgpu")
PACKED = RUNTIMES  # files that store what is not zero


def recipes(budget: Budget, *, trains: bool = False) -> list[Recipe]:
    """Every precision by WebAssembly, then narrower networks, then the float ones by WebGPU.

    The last are slow where there is no GPU. A limit on the latency is a goal too. trains: narrower networks
    are also trained.
    """
    grid = [f"{precision}@ort_web" for precision in COMPUTED]
    limit = budget.max_latency_s
    goal = [f"prune_channels:latency_s={limit} + {p}@ort_web" for p in ("fp32", "int8")] if limit else []
    smaller = _narrower.zeros(PACKED, budget)
    narrower = _narrower.calibrated(RUNTIMES) + (_narrower.trained(RUNTIMES, budget) if trains else [])
    return [parse_recipe(text) for text in dict.fromkeys([*grid, *goal, *smaller, *narrower, *GPU])]


def space(budget: Budget, *, trains: bool = False) -> Space:
    return _spaces.composed(RUNTIMES, COMPUTED, budget, trains=trains)
