"""One small network with its data, for tests that train."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from karui.artifact import Signature
from karui.graph.call import signature_of
from karui.graph.training import Material


def net_of(outputs: int = 3, seed: int = 0, *, norm: bool = True) -> nn.Module:
    """(n, 1, 6, 6) -> (n, outputs), in eval mode, with norm statistics that are not those of a fresh one."""
    torch.manual_seed(seed)
    middle = [nn.BatchNorm2d(4)] if norm else []
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), *middle, nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(64, outputs)
    )
    net(torch.randn(32, 1, 6, 6))
    return net.eval()


def images(count: int = 64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, 1, 6, 6)).astype(np.float32))


def labels(count: int = 64) -> Tensor:
    return torch.arange(count) % 3


def signature() -> Signature:
    return signature_of(net_of(), images(4), 1)[0]


def material(train=None) -> Material:
    return Material(signature(), {"input": images(64).numpy()}, train)
