"""Finding the range of a tensor from batches of it, in memory that does not grow with the data.

min-max; moving average of the batches' extremes (Jacob et al. 2018, arXiv:1712.05877); and three that
choose where to clip, from a histogram: percentile, the least squared error, and the least loss of
information (entropy, Migacz 2017, "8-bit Inference with TensorRT").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import final

import torch
from torch import Tensor

from karui.errors import UsageError
from karui.graph.ranges.table import Grid

BINS = 4096
PERCENTILE = 99.99  # of the values that stay inside
MOMENTUM = 0.9  # of the moving average
CANDIDATES = 64  # clipping ends that are tried
LEVELS = 128  # of the entropy's coarse histogram


class Observer(ABC):
    """Sees batches of one tensor; then tells its range."""

    @abstractmethod
    def see(self, values: Tensor) -> None:
        """Take in values, of any shape."""

    @abstractmethod
    def range(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """(low, high), each of shape (), for values that will lie on ``grid``."""


@final
class MinMax(Observer):
    def __init__(self) -> None:
        self.low, self.high = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    def see(self, values: Tensor) -> None:
        low, high = values.aminmax()
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)

    def range(self, grid: Grid) -> tuple[Tensor, Tensor]:
        return self.low, self.high


@final
class MovingAverage(Observer):
    def __init__(self) -> None:
        self.ends: Tensor | None = None

    def see(self, values: Tensor) -> None:
        new = torch.stack(list(values.aminmax()))
        self.ends = new if self.ends is None else MOMENTUM * self.ends + (1 - MOMENTUM) * new

    def range(self, grid: Grid) -> tuple[Tensor, Tensor]:
        assert self.ends is not None
        return self.ends[0], self.ends[1]


@final
class Histogram:
    """Counts of values in ``BINS`` equal bins around zero; twice as wide whenever a value lies outside."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.reach = 0.0
        self.low, self.high = torch.inf, -torch.inf

    def see(self, values: Tensor) -> None:
        values = values.detach().flatten().float()
        low, high = (float(end) for end in values.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.widen(max(abs(low), abs(high), 1e-30))
        self.counts += torch.histc(values, BINS, -self.reach, self.reach).double()

    def widen(self, reach: float) -> None:
        if not self.reach:
            self.reach = reach
        while self.reach < reach:
            quarter = BINS // 4
            inner = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[quarter : BINS - quarter] = inner
            self.reach *= 2

    @property
    def centres(self) -> Tensor:
        width = 2 * self.reach / BINS
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * width - self.reach


Choice = Callable[[Histogram, Grid], tuple[float, float]]


@final
class Clipping(Observer):
    """One that keeps a histogram, and may choose ends inside of the extremes by it."""

    def __init__(self, choose: Choice) -> None:
        self.histogram, self.choose = Histogram(), choose

    def see(self, values: Tensor) -> None:
        self.histogram.see(values)

    def range(self, grid: Grid) -> tuple[Tensor, Tensor]:
        low, high = self.choose(self.histogram, grid)
        return torch.tensor(low), torch.tensor(high)


def percentile(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """So that as many values lie beyond each end as ``PERCENTILE`` leaves outside."""
    sums = seen.counts.cumsum(0) / seen.counts.sum()
    outside = 1 - PERCENTILE / 100
    inner = seen.centres[(sums >= outside) & (sums - seen.counts / seen.counts.sum() <= 1 - outside)]
    half = seen.reach / BINS
    return max(seen.low, float(inner[0]) - half), min(seen.high, float(inner[-1]) + half)


def least_squared_error(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """The ends for which rounded and clipped values differ least from what they were, in squares."""
    return min(ends_of(seen), key=lambda ends: squared_error(seen, grid, *ends))


def least_information_lost(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """The ends for which the rounded distribution tells most about the one that was seen."""
    return min(ends_of(seen), key=lambda ends: information_lost(seen, *ends))


def ends_of(seen: Histogram) -> list[tuple[float, float]]:
    """That are tried: the farther one moves in until it meets the other, then both do."""
    reaches = [share * max(-seen.low, seen.high) for share in shares()]
    return [(max(seen.low, -reach), min(seen.high, reach)) for reach in reaches]


def shares() -> list[float]:
    """Of the farthest value, from all of it down to a few percent."""
    return [0.95**i for i in range(CANDIDATES)]


def squared_error(seen: Histogram, grid: Grid, low: float, high: float) -> float:
    low, high = min(low, 0.0), max(high, 0.0)
    if grid.symmetric:
        low, high = min(low, -high), max(high, -low)
    step = max((high - low) / (grid.high - grid.low), 1e-30)
    x = seen.centres
    beyond = (x - x.clamp(low, high)) ** 2
    inside = (x >= low) & (x <= high)
    zero = (x.abs() < step / 2) & (x.abs() <= seen.reach / BINS)  # zero itself is on the grid
    rounding = torch.where(inside & ~zero, step**2 / 12, 0.0)
    return float((seen.counts * (beyond + rounding)).sum())


def information_lost(seen: Histogram, low: float, high: float) -> float:
    x, counts = seen.centres, seen.counts
    inside = (x >= min(low, 0.0)) & (x <= max(high, 0.0))
    kept = counts[inside].clone()
    if not len(kept) or not kept.sum():
        return torch.inf
    coarse = torch.arange(len(kept)) * min(LEVELS, len(kept)) // len(kept)
    filled = (kept > 0).double()
    sums = torch.zeros(LEVELS, dtype=torch.float64).index_add(0, coarse, kept)
    many = torch.zeros(LEVELS, dtype=torch.float64).index_add(0, coarse, filled)
    spread = (sums / many.clamp(min=1))[coarse] * filled
    kept[0] += counts[x < low].sum()
    kept[-1] += counts[x > high].sum()
    p, q = kept / kept.sum(), spread / spread.sum()
    both = (p > 0) & (q > 0)
    lost = float(p[(p > 0) & (q == 0)].sum())
    return float((p[both] * (p[both] / q[both]).log()).sum()) + 10 * lost


OBSERVERS: dict[str, Callable[[], Observer]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": partial(Clipping, percentile),
    "mse": partial(Clipping, least_squared_error),
    "entropy": partial(Clipping, least_information_lost),
}


def observer(name: str) -> Observer:
    if name not in OBSERVERS:
        raise UsageError(f"no observer {name!r}", fix=f"one of: {', '.join(OBSERVERS)}")
    return OBSERVERS[name]()


def per_channel(weight: Tensor, axis: int, name: str, grid: Grid) -> tuple[Tensor, Tensor]:
    """The range of each index of a weight along ``axis``."""
    rows = weight.detach().movedim(axis, 0).flatten(1)
    if name in ("minmax", "moving_average", "percentile", "entropy"):  # too few values for a distribution
        return rows.amin(1), rows.amax(1)
    return least_squares(rows, grid)


def least_squares(rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Symmetric ends of each row (n, values) whose rounding differs least from it, in squares."""
    reach = rows.abs().amax(1).clamp(min=1e-12)
    best, least = reach.clone(), torch.full_like(reach, torch.inf)
    for share in shares()[: CANDIDATES // 2]:
        scale = (reach * share / grid.high).unsqueeze(1)
        rounded = (rows / scale).round().clamp(grid.low, grid.high) * scale
        error = ((rounded - rows) ** 2).sum(1)
        best = torch.where(error < least, reach * share, best)
        least = torch.minimum(error, least)
    return -best, best
