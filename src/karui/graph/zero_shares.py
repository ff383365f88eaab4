"""How many zeros each weight gets: the least damage to the answers for the zeros that are asked for.

Damage is measured: a weight alone is given zeros, the others in it take over, and the answers are compared
with the original's on part of the calibration data (``compensate.damage``). Between what was measured it is
read off geometrically, for it grows by factors. The best shares have one slope in common (Lagrange).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from karui.graph.allocate import rising

if TYPE_CHECKING:
    from karui.data import Array

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # shares of zeros at which damage is measured
FINEST = 1000  # steps in which a share is chosen
LEAST = 1e-9  # damage that counts as none
HALVINGS = 100  # of the range of slopes


@dataclass(frozen=True)
class Curve:
    """For one weight of ``size`` numbers: the damage at each of the rising ``shares`` of zeros."""

    path: str
    size: int
    shares: tuple[float, ...]
    errors: tuple[float, ...]

    def at(self, shares: Array) -> Array:
        logs = np.log(np.maximum(self.errors, LEAST))
        found: Array = np.exp(np.interp(shares, self.shares, logs))
        return found


def curve(path: str, size: int, now: float, goal: float, damage_at: Callable[[float], float]) -> Curve:
    """Measure a weight whose share of zeros is ``now``, as far as a goal over all weights can ask for it."""
    most = 1 - (1 - goal) / 10
    levels = [share for share in LEVELS if share > now]
    wanted = [share for share, before in zip(levels, [now, *levels]) if before < most - 1e-9]
    errors = rising([0.0, *(damage_at(share) for share in wanted)])
    return Curve(path, size, (now, *wanted), errors)


def least_damage(curves: Sequence[Curve], goal: float) -> Mapping[str, float]:
    """The share of zeros of each weight, by path, so that they are ``goal`` of all numbers together."""
    total = sum(one.size for one in curves)
    grids = [np.linspace(one.shares[0], one.shares[-1], FINEST) for one in curves]
    errors = [one.at(grid) for one, grid in zip(curves, grids)]

    def chosen(slope: float) -> Array:
        return np.array(
            [
                grid[np.argmin(error - slope * grid * one.size / total)]
                for one, grid, error in zip(curves, grids, errors)
            ]
        )

    sizes = np.array([one.size for one in curves]) / total
    low, high = 1e-12, 1e12
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if chosen(middle) @ sizes < goal else (low, middle)
    shares = between(chosen(low), chosen(high), sizes, goal)
    return {one.path: float(share) for one, share in zip(curves, shares)}


def between(fewer: Array, more: Array, sizes: Array, goal: float) -> Array:
    """Where a curve bends the wrong way the best shares jump over the goal: the way back is shared by all."""
    zeros, most = fewer @ sizes, more @ sizes
    way = (goal - zeros) / (most - zeros) if zeros < goal < most else 1.0
    return fewer + way * (more - fewer)


def drawn(one: Curve) -> str:
    """A curve in one word: share of zeros and damage, pair after pair."""
    return " ".join(f"{share:.2f}:{error:.3g}" for share, error in zip(one.shares, one.errors))
