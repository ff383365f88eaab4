"""Feature pyramids and heads that several levels share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "pyramids"


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            [conv_bn_relu(3, 8), conv_bn_relu(8, 12, stride=2), conv_bn_relu(12, 20, stride=2)]
        )

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Pyramid(nn.Module):
    """FPN: laterals of one width, added from the top down."""

    def __init__(self, width=14):
        super().__init__()
        self.backbone = Backbone()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in (8, 12, 20))
        self.smooth = nn.ModuleList(nn.Conv2d(width, 10, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(10, 4, 1)

    def levels(self, x):
        first, second, third = (lateral(f) for lateral, f in zip(self.lateral, self.backbone(x)))
        second = second + F.interpolate(third, scale_factor=2, mode="nearest")
        return first + F.interpolate(second, size=first.shape[-2:], mode="nearest"), second, third

    def forward(self, x):
        return [self.head(F.relu(smooth(level))) for smooth, level in zip(self.smooth, self.levels(x))]


class RetinaHead(Pyramid):
    """One tower for all levels, its norm not shared, a learned scale per level."""

    def __init__(self, width=14):
        super().__init__(width)
        self.tower = nn.Conv2d(width, 10, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(10) for _ in range(3))
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(3))
        del self.smooth

    def forward(self, x):
        outputs = []
        for level, norm, scale in zip(self.levels(x), self.norms, self.scales):
            outputs.append((self.head(F.relu(norm(self.tower(level)))) * scale).flatten(2))
        return torch.cat(outputs, -1).transpose(1, 2)


class BiPyramid(nn.Module):
    """BiFPN: sums with learned positive weights, normalised, then depthwise separable convolutions."""

    def __init__(self, width=14):
        super().__init__()
        self.backbone = Backbone()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in (8, 12, 20))
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(n)) for n in (2, 2, 3, 2))
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1), nn.SiLU()
            )
            for _ in range(4)
        )
        self.head = nn.Conv2d(width, 4, 1)

    def join(self, index, *features):
        weights = F.relu(self.weights[index])
        weights = weights / (weights.sum() + 1e-4)
        return self.convs[index](sum(w * f for w, f in zip(weights, features)))

    def forward(self, x):
        first, second, third = (lateral(f) for lateral, f in zip(self.lateral, self.backbone(x)))
        middle = self.join(0, second, F.interpolate(third, scale_factor=2))
        first = self.join(1, first, F.interpolate(middle, scale_factor=2))
        second = self.join(2, second, middle, F.max_pool2d(first, 2))
        third = self.join(3, third, F.max_pool2d(second, 2))
        return self.head(first), self.head(second), self.head(third)


SMALL = normal((3, 8, 8))
CASES = (
    Case("feature_pyramid", THEME, Pyramid, SMALL),
    Case("retina_head", THEME, RetinaHead, SMALL),
    Case("bifpn", THEME, BiPyramid, SMALL),
)
