"""Second moments of a layer's inputs, and what follows from them: least-squares weights and removal costs.

For a layer with inputs X (rows x n, with a column of ones for the bias) and weights W, everything is in
H = X'X. The cost of removing the columns S and letting the others take over is
tr(W_S (H^-1_SS)^-1 W_S') (Hassibi & Stork 1993; Frantar & Alistarh 2022, arXiv:2208.11580). Products are
summed in float64, batch by batch; activations are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT32 = 1e-6
TRIES = 20
RIDGES = (1e-4, 1e-3, 1e-2)  # shares of the mean diagonal that are tried
STEPS = 50  # of conjugate gradients at most, from weights that are near already
SOLVED = 1e-8  # of the squared residual at the start, where they stop


@dataclass
class Moments:
    """H (groups, n, n) of the inputs, and their products with targets, (groups, n, outputs).

    ones: whether the last of the n columns is one for the bias.
    """

    ones: bool
    inputs: Tensor | None = None
    targets: Tensor | None = None
    rows: int = 0

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """x: (groups, rows, n), y: (groups, rows, outputs), both float32."""
        if self.ones:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        self.inputs = summed(self.inputs, x.transpose(1, 2) @ x)
        if y is not None:
            self.targets = summed(self.targets, x.transpose(1, 2) @ y)
        self.rows += x.shape[1]

    @property
    def H(self) -> Tensor:
        assert self.inputs is not None
        return self.inputs

    def plus(self, other: Moments) -> Moments:
        if not self.rows or not other.rows:
            return self if self.rows else other
        assert self.targets is not None and other.targets is not None
        return Moments(self.ones, self.H + other.H, self.targets + other.targets, self.rows + other.rows)


def summed(so_far: Tensor | None, part: Tensor) -> Tensor:
    """In float64; in place, for these are the largest tensors there are."""
    return part.double() if so_far is None else so_far.add_(part)


def solve(H: Tensor, targets: Tensor, start: Tensor, keep: Tensor, ridge: float) -> Tensor:
    """Weights (n, outputs) on the kept columns that come closest to the targets; zero on the others.

    The ridge (a share of the mean diagonal) pulls towards ``start``, the weights so far.
    """
    part = H[keep][:, keep]
    amount = ridge * part.diagonal().mean().clamp(min=1e-12)
    old = start[keep]
    step = torch.cholesky_solve(targets[keep] - part @ old, factored(part, amount))
    new = torch.zeros_like(start)
    new[keep] = old + step
    return new


def on_support(
    H: Tensor, targets: Tensor, start: Tensor, support: Tensor, ridge: float = 1e-4, steps: int = STEPS
) -> Tensor:
    """Least squares where every output has columns of its own: weights (outputs, n), zero off ``support``.

    H: (n, n), targets: (n, outputs), start: (outputs, n), all float64; support: bool, as ``start``. All
    outputs are solved together by preconditioned conjugate gradients, which needs no factor of H for each.
    """
    amount = ridge * H.diagonal().mean().clamp(min=1e-12)
    scale = 1 / (H.diagonal() + amount)
    weights = start * support
    left = (targets.T + amount * start - weights @ H - amount * weights) * support
    way = left * scale
    height = (left * way).sum(1, keepdim=True)
    enough = SOLVED * height
    for _ in range(steps):
        if bool((height <= enough).all()):
            break
        slope = (way @ H + amount * way) * support
        length = height / (way * slope).sum(1, keepdim=True).clamp(min=1e-30)
        weights = weights + length * way
        left = left - length * slope
        before, height = height, (left * left * scale).sum(1, keepdim=True)
        way = left * scale + height / before.clamp(min=1e-30) * way
    return weights


def loss(H: Tensor, targets: Tensor, weights: Tensor) -> float:
    """The squared error, up to a constant that does not depend on the weights."""
    return float((weights * (H @ weights - 2 * targets)).sum())


def fit(halves: Sequence[Moments], group: int, start: Tensor, keep: Tensor) -> Tensor:
    """Least squares on two halves of the data, with the ridge that serves the other half best."""
    losses = cross_losses(halves, group, start, keep)
    return fit_all(halves, group, start, keep, min(losses, key=losses.__getitem__)) if losses else start


def refit(halves: Sequence[Moments], group: int, start: Tensor) -> Tensor:
    """The same on all columns; ``start`` itself where that serves the other half no worse."""
    keep = torch.ones(len(start), dtype=torch.bool)
    losses = cross_losses(halves, group, start, keep)
    if not losses or unchanged(halves, group, start) <= min(losses.values()):
        return start
    return fit_all(halves, group, start, keep, min(losses, key=losses.__getitem__))


def cross_losses(halves: Sequence[Moments], group: int, start: Tensor, keep: Tensor) -> dict[float, float]:
    """What weights fitted to one half lose on the other, by ridge; nothing where one half is empty."""
    one, other = halves
    if not one.rows or not other.rows:
        return {}
    return {
        ridge: cross_loss(one, other, group, (start, keep, ridge))
        + cross_loss(other, one, group, (start, keep, ridge))
        for ridge in RIDGES
    }


def unchanged(halves: Sequence[Moments], group: int, start: Tensor) -> float:
    return sum(loss(one.H[group], one.targets[group], start) for one in halves if one.targets is not None)


def fit_all(halves: Sequence[Moments], group: int, start: Tensor, keep: Tensor, ridge: float) -> Tensor:
    whole = halves[0].plus(halves[1])
    assert whole.targets is not None
    return solve(whole.H[group], whole.targets[group], start, keep, ridge)


def centred(H: Tensor) -> Tensor:
    """Of the inputs around their mean: what stays of H when the last column, of ones, may do what it likes.

    H: (groups, n, n). Batches are multiplied in float32: what that may have lost is added to the diagonal.
    """
    part = H[:, :-1, :-1]
    lost = FLOAT32 * part.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    return (
        part
        - H[:, :-1, -1:] * H[:, -1:, :-1] / H[:, -1:, -1:]
        + lost * torch.eye(part.shape[1], dtype=H.dtype)
    )


def inverse(H: Tensor, ridge: float = 1e-4) -> Tensor:
    """H^-1, with a share of the mean diagonal added."""
    amount = ridge * H.diagonal().mean().clamp(min=1e-12)
    return torch.cholesky_inverse(factored(H, amount))


def factored(H: Tensor, amount: Tensor) -> Tensor:
    """The Cholesky factor of H with ``amount`` on its diagonal.

    Inputs that hardly vary leave nothing in H but the rounding of float32, which need not be positive: then
    the amount grows until it is.
    """
    factor: Tensor
    for _ in range(TRIES):
        lifted = H.clone()  # only its lower half is looked at
        lifted.diagonal().add_(amount)
        factor, failed = torch.linalg.cholesky_ex(lifted)
        if not failed:
            return factor
        amount = 10 * amount
    factor = torch.linalg.cholesky(H)  # what is not finite fails here, with its reason
    return factor


def cross_loss(one: Moments, other: Moments, group: int, how: tuple[Tensor, Tensor, float]) -> float:
    """What weights fitted to one half of the data lose on the other."""
    assert one.targets is not None and other.targets is not None
    weights = solve(one.H[group], one.targets[group], *how)
    return loss(other.H[group], other.targets[group], weights)
