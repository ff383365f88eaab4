"""How long the narrowed model will take on its runtime: learned from narrowed copies that were timed there.

A call costs a constant, something for every element that the layers give out, and something for every
multiplication, at a price of each layer's own. A width that is no multiple of what the runtime's kernels
work with costs more: the penalties of multiples of 2, 4, 8, ... are learned with the rest, so that stairs
come out of measurements instead of being assumed. All prices are at least zero, and start from the share
of the multiplications that a layer makes. What prices cannot explain about a timed model is expected of
models like it (kriging: Krige 1951), so that a model that was timed is predicted as it was timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from karui.graph.cut.shapes import Gone
from karui.graph.macs import Product

Floats = np.ndarray[Any, np.dtype[np.float64]]

MULTIPLES = (2, 4, 8, 16, 32)
CONSTANT, ELEMENTS = 0.1, 0.2  # of a call's time, before anything is known
NOISE = 0.02  # of a timing, as a share of the original's
PENALTY = 0.3  # that widths may cost before it is a surprise, in shares of the multiplications' price
SWEEPS = 300  # of coordinate descent
UNEXPLAINED = 0.05  # of the original's time, that prices are usually off by
ALIKE = 0.1  # of the original's time, that two models differ by, where one tells a third about the other


@dataclass
class Staircase:
    """Predicts the share of the original's latency that a narrowed model needs.

    full, outputs: multiplications a sample, and elements given out, of each layer. axes: for each, which of
    ``tables`` its size depends on; tables: the labels along axes that can shrink, each once; sizes: theirs.
    """

    full: Floats
    outputs: Floats
    axes: Sequence[Sequence[int]]
    tables: Sequence[Any]
    sizes: Floats
    rows: Floats = field(init=False)  # (timed models, features)
    shares: Floats = field(init=False)
    weights: Floats = field(init=False)
    assumed: Floats = field(init=False)
    prices: Floats = field(init=False)
    pulls: Floats = field(init=False)  # of each timed model on the prediction of one like it

    def __post_init__(self) -> None:
        macs = (1 - CONSTANT - ELEMENTS) * self.full / max(self.full.sum(), 1.0)
        self.prices = self.assumed = np.concatenate([[CONSTANT, ELEMENTS], np.zeros(len(MULTIPLES)), macs])
        self.rows = np.zeros((0, len(self.prices)))
        self.shares = self.weights = self.pulls = np.zeros(0)

    def features(self, gone: Gone) -> Floats:
        """Of a model, from what is gone of it."""
        away = gone.table.numpy()
        return self.features_at(np.array([np.count_nonzero(away[table]) for table in self.tables]))

    def features_at(self, gone: Floats) -> Floats:
        """Constant, elements, penalties by multiple, and each layer's share of its own multiplications.

        gone: positions of each table.
        """
        now = self.sizes - gone
        stays = now / self.sizes
        left = np.array([stays[list(axes)].prod() for axes in self.axes])
        first = np.array([stays[axes[0]] if axes else 1.0 for axes in self.axes])
        elements = float(first @ self.outputs) / max(self.outputs.sum(), 1.0)
        costs = left * self.assumed[-len(left) :]
        odd = [(now % step != 0) & (self.sizes % step == 0) for step in MULTIPLES]
        penalties = [costs[[bool(mask[list(axes)].any()) for axes in self.axes]].sum() for mask in odd]
        return np.concatenate([[1.0, elements], penalties, left])

    def learn(self, timed: Sequence[tuple[Gone, float]], weight: float = 1.0) -> None:
        """Take in models that were timed, as shares of the original's latency."""
        self.rows = np.concatenate([self.rows, *(self.features(gone)[None] for gone, _ in timed)])
        self.shares = np.append(self.shares, [share for _, share in timed])
        self.weights = np.append(self.weights, np.full(len(timed), weight))
        self.prices = fitted(self.rows, self.shares, self.weights, self.assumed)
        likeness = np.array([self.likeness(row) for row in self.rows])
        doubt = np.diag((NOISE / UNEXPLAINED) ** 2 / self.weights)
        unexplained = self.shares - self.rows @ self.prices
        self.pulls = np.asarray(np.linalg.solve(likeness + doubt, unexplained), np.float64)

    def likeness(self, row: Floats) -> Floats:
        """Of a model to each that was timed: 1 for the same, and near 0 where much of the time differs."""
        return np.asarray(np.exp(-(np.abs(self.rows - row) @ self.prices) / ALIKE))

    def share(self, gone: Gone) -> float:
        return self.share_of(self.features(gone))

    def share_of(self, row: Floats) -> float:
        return float(row @ self.prices) + float(self.likeness(row) @ self.pulls)

    @property
    def penalties(self) -> dict[str, float]:
        """What widths that are no such multiple cost more, in shares of the multiplications' price."""
        found = zip(MULTIPLES, self.prices[2:])
        return {str(step): round(float(price), 3) for step, price in found if price >= 0.01}


def staircase(products: Sequence[Product], nothing: Gone) -> Staircase:
    """For the operations that multiply, before anything was timed; ``nothing``: no unit gone."""
    found = [one for one in products if one.count(nothing)]
    tables = {id(table): table for one in found for table in one.tables}
    places = {key: i for i, key in enumerate(tables)}
    return Staircase(
        np.array([one.count(nothing) for one in found]),
        np.array([one.positions * (one.tables[0].numel() if one.tables else 1) for one in found]),
        [[places[id(table)] for table in one.tables] for one in found],
        [table[table >= 0].numpy() for table in tables.values()],
        np.array([float(table.numel()) for table in tables.values()]),
    )


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
