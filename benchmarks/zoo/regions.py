"""Regions that autograd does not see, or sees otherwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn
from torch.utils.checkpoint import checkpoint

THEME = "regions"


class FrozenBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Sequential(conv_bn_relu(3, 12), conv_bn_relu(12, 20)), classifier(20)
        self.backbone.requires_grad_(False)

    def forward(self, x):
        return self.head(self.backbone(x))


class NoGradStem(FrozenBackbone):
    def forward(self, x):
        with torch.no_grad():
            x = self.backbone(x)
        return self.head(x)


class DetachedBranch(nn.Module):
    """SimSiam's stop-gradient: values flow, gradients do not."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = conv_bn_relu(3, 12), conv_bn_relu(12, 18)
        self.main, self.side = classifier(18), classifier(18)

    def forward(self, x):
        x = self.conv(self.stem(x).detach())
        return self.main(x) + self.side(x.detach())


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.head, self.reentrant = conv_bn_relu(3, 14), classifier(20), reentrant
        self.block = nn.Sequential(conv_bn_relu(14, 10), conv_bn_relu(10, 20))

    def forward(self, x):
        x = self.stem(x)
        if torch.is_grad_enabled():  # without gradients torch warns that there is nothing to keep
            return self.head(checkpoint(self.block, x, use_reentrant=self.reentrant))
        return self.head(self.block(x))


class FixedFilters(nn.Module):
    """Weights that are buffers: Gabor-like filters, then a random projection."""

    def __init__(self):
        super().__init__()
        self.register_buffer("filters", torch.cos(torch.arange(12 * 27.0)).view(12, 3, 3, 3))
        self.register_buffer("projection", torch.sin(torch.arange(18.0 * 14)).view(18, 14))
        self.conv, self.head = conv_bn_relu(12, 18), nn.Linear(14, 5)

    def forward(self, x):
        x = self.conv(F.relu(F.conv2d(x, self.filters, padding=1)))
        return self.head(torch.tanh(x.mean((2, 3)) @ self.projection))


class FakeQuantised(nn.Module):
    """Quantisation-aware training: one step size for a whole tensor, straight-through rounding."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(10, 20), nn.Linear(20, 14), nn.Linear(14, 5)
        self.step = nn.Parameter(torch.tensor(0.1))

    def forward(self, x):
        x = F.relu(self.fc1(x)) / (0.1 * self.step)
        x = (x + (x.round() - x).detach()) * (0.1 * self.step)
        return self.head(F.relu(self.fc2(x)))


SMALL, ROW = normal((3, 8, 8)), normal((10,))
CASES = (
    Case("frozen_backbone", THEME, FrozenBackbone, SMALL),
    Case("no_grad_stem", THEME, NoGradStem, SMALL),
    Case("detached", THEME, DetachedBranch, SMALL),
    Case("checkpoint", THEME, lambda: Checkpointed(False), SMALL),
    Case("checkpoint_reentrant", THEME, lambda: Checkpointed(True), SMALL),
    Case("fixed_filters", THEME, FixedFilters, SMALL),
    Case("fake_quantised", THEME, FakeQuantised, ROW),
)
