"""What a case is, and the makers of its example inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Inputs = Callable[[int], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One small model: ``network`` builds it, ``inputs(rows)`` gives example inputs of that many samples.

    ``exact``: units can be removed without a trace, if need be with the known corrections (attention scale,
    factor of a mean over channels, constants into the next bias). False where units see each other in a way
    that no correction repairs: LayerNorm or softmax over the channels, GroupNorm. ``frozen``: no unit can be
    removed exactly. ``prepare`` sets the values that the case is about, after randomising.
    """

    name: str
    theme: str
    network: Callable[[], nn.Module]
    inputs: Inputs
    exact: bool = True
    frozen: bool = False
    prepare: Callable[[nn.Module], None] | None = None


def normal(*shapes: tuple[int, ...]) -> Inputs:
    """One tensor per shape; the shapes are without the batch axis. Equal calls give equal values."""

    def inputs(rows: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(rows)
        return tuple(torch.randn(rows, *shape, generator=generator) for shape in shapes)

    return inputs


def tokens(vocabulary: int, *lengths: int) -> Inputs:
    """One tensor of integers below ``vocabulary`` per length. Equal calls give equal values."""

    def inputs(rows: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(rows)
        return tuple(torch.randint(vocabulary, (rows, length), generator=generator) for length in lengths)

    return inputs


def both(*makers: Inputs) -> Inputs:
    """The tensors of all makers, in order."""
    return lambda rows: tuple(tensor for maker in makers for tensor in maker(rows))
