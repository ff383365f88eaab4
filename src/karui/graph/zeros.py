"""Zeros that stay: weights that are exactly zero now are exactly zero after any training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LEAST_AXES = 2  # of a weight: a bias or a norm that is zero here and there was never pruned


def zeros_of(model: nn.Module) -> dict[str, Tensor]:
    """Name of each weight that is partly zero -> where it is, as a bool tensor of its shape.

    Weights have two axes or more. One that is zero everywhere waits for its training (as a gate or the last
    layer of a branch may), and is left out. Tied weights are named once.
    """
    found = {name: weight.detach() == 0 for name, weight in model.named_parameters() if has_axes(weight)}
    return {name: zero for name, zero in found.items() if zero.any() and not zero.all()}


def has_axes(weight: Tensor) -> bool:
    return weight.dim() >= LEAST_AXES and weight.is_floating_point()


@contextmanager
def held(model: nn.Module, zeros: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """While it is open, gradients are zero where weights are, so that no optimizer moves them.

    zeros: as ``zeros_of`` gives them, which is asked when they are not given. On leaving they are made zero
    once more, whatever was done to them.
    """
    zeros = zeros_of(model) if zeros is None else zeros
    weights = dict(model.named_parameters())
    hooks = [
        weights[name].register_hook(masking(zero))  # type: ignore[no-untyped-call]
        for name, zero in zeros.items()
        if weights[name].requires_grad
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        put(model, zeros)


def masking(zero: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.masked_fill(zero, 0)


@torch.no_grad()
def put(model: nn.Module, zeros: Mapping[str, Tensor]) -> None:
    """Make the weights zero where ``zeros`` says so; names and shapes that the model has not are left out."""
    for name, weight in model.named_parameters():
        if name in zeros and zeros[name].shape == weight.shape:
            weight.masked_fill_(zeros[name], 0)
