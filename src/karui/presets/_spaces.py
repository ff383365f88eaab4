"""What a search composes: narrower layers, zeros where bytes count, recovery where it can be trained."""

from __future__ import annotations

from collections.abc import Sequence

from karui.budget import Budget
from karui.presets import _narrower
from karui.space import Axis, Space

MACS = ("0.75", "0.5", "0.35", "0.25", "0.125")
SPARSITY = ("0.5", "0.8", "0.9")


def composed(
    runtimes: Sequence[str], precisions: Sequence[str], budget: Budget, *, trains: bool = False
) -> Space:
    """The space of a target. trains: whether there are data to train on."""
    channels = ("", *(f"prune_channels:macs={share},multiple_of=8" for share in MACS))
    steps = [Axis("channels", channels, ordered=True)]
    if _narrower.small(budget):
        zeros = ("", *(f"prune_weights:sparsity={share}" for share in SPARSITY))
        steps.append(Axis("weights", zeros, ordered=True))
    if trains:
        steps.append(Axis("recovery", ("", _narrower.recovery(budget))))
    return Space(tuple(steps), tuple(precisions), tuple(runtimes))
