"""How long the narrowed model will take on its runtime: learned from narrowed copies that were timed there.

A call costs a constant, something for every element that the layers give out, and something for every
multiplication, at a price of each layer's own. A width that is no multiple of what the runtime's kernels
work with costs more: the penalties of multiples of 2, 4, 8, ... are learned with the rest, so that stairs
come out of measurements instead of being assumed. All prices are at least zero, and start from the share
of the multiplications that a layer makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from karui.graph.cut.shapes import Gone
from karui.graph.macs import Product

Floats = np.ndarray[Any, np.dtype[np.float64]]

MULTIPLES = (2, 4, 8, 16, 32)
CONSTANT, ELEMENTS = 0.1, 0.2  # of a call's time, before anything is known
NOISE = 0.02  # of a timing, as a share of the original's
PENALTY = 0.3  # that widths may cost before it is a surprise, in shares of the multiplications' price
SWEEPS = 300  # of coordinate descent


@dataclass(frozen=True)
class Layer:
    """An operation that multiplies. full: multiplications a sample. outputs: elements it gives out."""

    product: Product
    full: float
    outputs: float

    def left(self, gone: Gone) -> float:
        """Share of the multiplications that stays."""
        return self.product.count(gone) / self.full

    def outputs_left(self, gone: Gone) -> float:
        """Elements that it still gives out."""
        if not self.product.tables:
            return self.outputs
        table = self.product.tables[0]
        return self.outputs * width(table, gone) / table.numel()

    def is_odd(self, gone: Gone, step: int) -> bool:
        """Whether an axis is no multiple any more."""
        sizes = [(width(table, gone), table.numel()) for table in self.product.tables]
        return any(now % step != 0 and before % step == 0 for now, before in sizes)


def width(table: Tensor, gone: Gone) -> int:
    return int((~gone.at(table)).sum())


@dataclass
class Staircase:
    """Predicts the share of the original's latency that a narrowed model needs."""

    layers: Sequence[Layer]
    rows: list[Floats] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    prices: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.prices = self.assumed

    @property
    def assumed(self) -> Floats:
        full = np.array([layer.full for layer in self.layers])
        macs = (1 - CONSTANT - ELEMENTS) * full / max(full.sum(), 1.0)
        return np.concatenate([[CONSTANT, ELEMENTS], np.zeros(len(MULTIPLES)), macs])

    def features(self, gone: Gone) -> Floats:
        """Constant, elements, penalties by multiple, and each layer's share of its own multiplications."""
        left = np.array([layer.left(gone) for layer in self.layers])
        costs = left * self.assumed[-len(left) :]
        outputs = sum(layer.outputs for layer in self.layers)
        elements = sum(layer.outputs_left(gone) for layer in self.layers) / max(outputs, 1.0)
        odd = [
            sum(cost for cost, layer in zip(costs, self.layers) if layer.is_odd(gone, step))
            for step in MULTIPLES
        ]
        return np.concatenate([[1.0, elements], odd, left])

    def learn(self, timed: Sequence[tuple[Gone, float]], weight: float = 1.0) -> None:
        """Take in models that were timed, as shares of the original's latency."""
        for gone, share in timed:
            self.rows.append(self.features(gone))
            self.shares.append(share)
            self.weights.append(weight)
        self.prices = fitted(np.array(self.rows), np.array(self.shares), np.array(self.weights), self.assumed)

    def share(self, gone: Gone) -> float:
        return float(self.features(gone) @ self.prices)

    @property
    def penalties(self) -> dict[str, float]:
        """What widths that are no such multiple cost more, in shares of the multiplications' price."""
        found = zip(MULTIPLES, self.prices[2:])
        return {str(step): round(float(price), 3) for step, price in found if price >= 0.01}


def layers_of(products: Sequence[Product], nothing: Gone) -> list[Layer]:
    """The operations that multiply; ``nothing``: no unit gone."""
    found = []
    for one in products:
        outputs = one.positions * (one.tables[0].numel() if one.tables else 1)
        if full := one.count(nothing):
            found.append(Layer(one, full, outputs))
    return found


def fitted(rows: Floats, shares: Floats, weights: Floats, assumed: Floats) -> Floats:
    """The likeliest prices of at least zero, for timings and assumptions that are so uncertain."""
    doubt = assumed + NOISE
    doubt[2 : 2 + len(MULTIPLES)] = PENALTY
    pull = (NOISE / doubt) ** 2
    H = (rows * weights[:, None]).T @ rows + np.diag(pull)
    target = (rows * weights[:, None]).T @ shares + pull * assumed
    prices = assumed.copy()
    for _ in range(SWEEPS):
        for i in range(len(prices)):
            rest = target[i] - H[i] @ prices + H[i, i] * prices[i]
            prices[i] = max(0.0, rest / H[i, i])
    return prices
