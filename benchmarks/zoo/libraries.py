"""Layers as the model libraries write them, each with an operation that no other theme has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "libraries"


def hard_swish_in_place():
    """MobileNetV3's activation, which writes over its input."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Hardswish(inplace=True),
        nn.Conv2d(12, 16, 3, groups=4), nn.Hardswish(inplace=True), classifier(16),
    )  # fmt: skip


class PaddedValues(nn.Module):
    """EfficientViT's linear attention: a column of ones beside the values sums the weights."""

    def __init__(self, heads=3, dim=6):
        super().__init__()
        self.heads, self.qkv = heads, nn.Conv2d(3, 3 * heads * dim, 1)
        self.project = classifier(heads * dim)

    def forward(self, x):
        rows, _, height, width = x.shape
        qkv = self.qkv(x).reshape(rows, self.heads, -1, height * width).transpose(-1, -2)
        q, k, v = qkv.chunk(3, dim=-1)
        context = F.relu(k).transpose(-1, -2) @ F.pad(v, (0, 1), mode="constant", value=1.0)
        out = F.relu(q) @ context
        out = out[..., :-1] / (out[..., -1:] + 1e-5)
        return self.project(out.transpose(-1, -2).reshape(rows, -1, height, width))


class NarrowKeys(nn.Module):
    """LeViT: one product makes keys and queries half as wide as values, head by head."""

    def __init__(self, heads=4, dim=5):
        super().__init__()
        self.heads, self.dim = heads, dim
        self.qkv = nn.Linear(8, heads * dim * 4)
        self.project, self.head = nn.Linear(heads * dim * 2, 12), nn.Linear(12, 5)

    def forward(self, x):
        rows, tokens, _ = x.shape
        qkv = self.qkv(x).view(rows, tokens, self.heads, -1)
        q, k, v = qkv.split([self.dim, self.dim, 2 * self.dim], dim=3)
        scores = q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1) * self.dim**-0.5
        mixed = scores.softmax(-1) @ v.permute(0, 2, 1, 3)
        x = F.hardswish(self.project(F.hardswish(mixed.transpose(1, 2).reshape(rows, tokens, -1))))
        return self.head(x.mean(1))


class ReflectedBorder(nn.Module):
    """Padding by mirrored pixels, given by its mode; and circular along one axis."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 14, 3), classifier(14)

    def forward(self, x):
        x = torch.relu(self.first(F.pad(x, (1, 1, 1, 1), mode="reflect")))
        return self.head(self.second(F.pad(F.pad(x, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1))))


SMALL = normal((3, 8, 8))
CASES = (
    Case("hard_swish_in_place", THEME, hard_swish_in_place, SMALL),
    Case("padded_values", THEME, PaddedValues, SMALL),
    Case("narrow_keys", THEME, NarrowKeys, normal((6, 8))),
    Case("reflected_border", THEME, ReflectedBorder, SMALL),
)
