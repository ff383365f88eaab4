"""Choosing whole numbers for a matrix of weights, so that its products with the inputs change least.

All three want q with (q * scale - W) H (q * scale - W)' small, H = X'X of the inputs. ``nearest`` looks at
the weights only; ``gptq`` rounds one column after the other and lets those that come later take over what
is left (Frantar et al. 2022, arXiv:2210.17323); ``adaround`` learns for each weight whether it goes up or
down (Nagel et al. 2020, arXiv:2004.10568). H holds all that the rows of X say about squared errors, so that
every step of AdaRound sees all of the data, and there is nothing to draw at random. A weight that is exactly
zero stays so: a pruned one is to remain pruned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from karui.graph.gram import inverse
from karui.graph.ranges.table import Grid

BLOCK = 128  # columns whose errors are passed on together
STRETCH = (-0.1, 1.1)  # of the sigmoid, so that it reaches 0 and 1
BETAS = (20.0, 2.0)  # of the penalty for staying between two whole numbers: its first and last exponent
WARM = 0.2  # share of the rounds before that penalty
PENALTY = 3.0
EXACT = 1e-12  # a squared error, as a share of the outputs' energy, that only float rounding makes
PASSES = 10  # over all weights at most, of the steps that end AdaRound
RATE = 0.1


def nearest(weights: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    return (weights / scale).round().clamp(grid.low, grid.high)


def loss(q: Tensor, weights: Tensor, scale: Tensor, H: Tensor) -> Tensor:
    """Of each output (..., outputs): the squared error of its products, summed over the rows of X."""
    apart = q * scale - weights
    return (apart @ H * apart).sum(-1)


def gptq(
    weights: Tensor,
    scale: Tensor,
    grid: Grid,
    H: Tensor,
    ridge: float = 1e-2,
    zero: Tensor | None = None,
) -> Tensor:
    """weights: (outputs, n) and H: (n, n), both float64; scale and zero point: (outputs, 1) or (outputs, n).

    Large diagonals come first.
    """
    order = H.diagonal().argsort(descending=True)
    left, q, there = weights[:, order].clone(), torch.zeros_like(weights), weights[:, order] != 0
    steps = scale.expand_as(weights)[:, order]
    zeros = torch.zeros_like(steps) if zero is None else zero.expand_as(weights)[:, order]
    upper = torch.linalg.cholesky(inverse(H[order][:, order], ridge), upper=True)
    n = len(order)
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        errors = torch.zeros(len(left), end - start, dtype=left.dtype)
        for i in range(start, end):
            whole = ((left[:, i] / steps[:, i]).round() + zeros[:, i]).clamp(grid.low, grid.high)
            q[:, i] = torch.where(there[:, i], whole, zeros[:, i])
            error = (left[:, i] - (q[:, i] - zeros[:, i]) * steps[:, i]) / upper[i, i]
            left[:, i:end] -= error.unsqueeze(1) * upper[i, i:end]
            errors[:, i - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    return q[:, order.argsort()]


def adaround(weights: Tensor, scale: Tensor, grid: Grid, H: Tensor, rounds: int) -> Tensor:
    """The same arguments, with a further axis in front for groups of channels.

    In each group the squared error counts as a multiple of that of rounding to nearest.
    """
    floor, usual = (weights / scale).floor(), nearest(weights, scale, grid)
    error = loss(usual, weights, scale, H).sum(-1)
    exact = (error <= EXACT * (weights @ H * weights).sum((-2, -1)))[..., None, None]
    each = weights[0].numel() / error[..., None, None]
    metric = torch.where(exact, 0.0, H * each).float()
    v, there = logit((weights / scale - floor).float()).requires_grad_(True), weights != 0
    optimizer = torch.optim.Adam([v], lr=RATE)
    with torch.enable_grad():
        for step in range(rounds):
            up = between(v)
            apart = (floor.float() + up).clamp(grid.low, grid.high) * scale.float() - weights.float()
            apart = apart * there
            slope = 2 * apart.detach() @ metric  # autograd would take the product a second time
            cost = (slope * apart).sum() + penalty(up, step / rounds)
            optimizer.zero_grad()
            cost.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    learned = (floor + (between(v.detach()) >= 0.5)).clamp(grid.low, grid.high) * there
    return torch.where(exact, usual, descend(learned, weights, scale, grid, H))


def penalty(up: Tensor, done: float) -> Tensor:
    """For weights between two whole numbers; it comes late and from afar, so that the error decides first."""
    if done < WARM:
        return up.new_zeros(())
    beta = BETAS[1] + (BETAS[0] - BETAS[1]) * (1 - done) / (1 - WARM)
    return PENALTY * (1 - (2 * up - 1).abs().pow(beta)).sum()


def descend(q: Tensor, weights: Tensor, scale: Tensor, grid: Grid, H: Tensor) -> Tensor:
    """Move one weight after the other to where the error is least, as long as any moves."""
    q, s, there = q.clone(), scale[..., 0], weights != 0
    slope = (q * scale - weights) @ H
    curvatures = H.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12)
    for _ in range(PASSES):
        before = q.clone()
        for j in range(q.shape[-1]):
            step = slope[..., j] / (curvatures[..., j, None] * s)
            new = (q[..., j] - step.round()).clamp(grid.low, grid.high) * there[..., j]
            slope += ((new - q[..., j]) * s).unsqueeze(-1) * H[..., j, None, :]
            q[..., j] = new
        if torch.equal(q, before):
            break
    return q


def between(v: Tensor) -> Tensor:
    """A sigmoid that reaches 0 and 1."""
    low, high = STRETCH
    return (v.sigmoid() * (high - low) + low).clamp(0, 1)


def logit(share: Tensor) -> Tensor:
    """The inverse of ``between``."""
    low, high = STRETCH
    return -((high - low) / (share - low) - 1).log()
