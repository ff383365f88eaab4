"""The reference example's network."""

from __future__ import annotations

from torch import nn


def mnist_net() -> nn.Sequential:
    """Images (n, 1, 28, 28) in [0, 1] -> logits (n, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 10),
    )
