"""Grouped and depthwise convolutions, and what shuffles between groups."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "grouped"


def stacked(*layers, out):
    return lambda: nn.Sequential(*(layer() for layer in layers), classifier(out))


class Shuffle(nn.Module):
    """The channel shuffle written by hand."""

    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        rows, channels, height, width = x.size()
        x = x.view(rows, self.groups, channels // self.groups, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(rows, -1, height, width)


class ShuffleUnit(nn.Module):
    """ShuffleNet v1: grouped 1x1, shuffle, depthwise, grouped 1x1, sum."""

    def __init__(self, width, hidden, groups):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn_relu(width, hidden, 1, groups=groups),
            Shuffle(groups),
            conv_bn_relu(hidden, hidden, 3, groups=hidden),
            nn.Conv2d(hidden, width, 1, groups=groups, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return F.relu(x + self.body(x))


class ShuffleUnitV2(nn.Module):
    """ShuffleNet v2: half of the channels pass, the other half is changed, then all are shuffled."""

    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn_relu(half, half, 1),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv_bn_relu(half, half, 1),
        )
        self.shuffle = Shuffle(2)

    def forward(self, x):
        passed, changed = x.chunk(2, dim=1)
        return self.shuffle(torch.cat((passed, self.branch(changed)), dim=1))


class ResNeXtBlock(nn.Module):
    def __init__(self, width, hidden, groups):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn_relu(width, hidden, 1),
            conv_bn_relu(hidden, hidden, 3, groups=groups),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return F.relu(x + self.body(x))


class GhostModule(nn.Module):
    """Half of the outputs are cheap copies, some then cut off by a literal size."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.outputs = outputs
        half = -(-outputs // 2)
        self.primary = conv_bn_relu(inputs, half, 1)
        self.cheap = conv_bn_relu(half, half, 3, groups=half)

    def forward(self, x):
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], dim=1)[:, : self.outputs]


class MixConv(nn.Module):
    """Depthwise with one kernel size a part."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = list(parts)
        self.convs = nn.ModuleList(
            nn.Conv2d(part, part, 3 + 2 * index, padding=1 + index, groups=part)
            for index, part in enumerate(parts)
        )

    def forward(self, x):
        return torch.cat([conv(part) for conv, part in zip(self.convs, x.split(self.parts, 1))], 1)


class GroupedLinear(nn.Module):
    """A block-diagonal Linear: groups by view, product by einsum."""

    def __init__(self, groups=4):
        super().__init__()
        self.groups = groups
        self.fc1, self.fc2 = nn.Linear(10, 24), nn.Linear(32, 5)
        self.weight = nn.Parameter(torch.randn(groups, 6, 8))

    def forward(self, x):
        x = F.relu(self.fc1(x)).view(x.shape[0], self.groups, -1)
        x = torch.einsum("bgi,gio->bgo", x, self.weight)
        return self.fc2(F.relu(x).flatten(1))


class GroupAttribute(nn.Module):
    """``groups`` of a functional convolution is read from the width of its weight."""

    def __init__(self, width=14):
        super().__init__()
        self.stem, self.head = conv_bn_relu(3, width), classifier(width)
        self.weight = nn.Parameter(torch.randn(width, 1, 3, 3))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(F.conv2d(x, self.weight, self.bias, padding=1, groups=self.weight.shape[0])))


class LargeKernel(nn.Module):
    """A depthwise branch of each kernel size, summed, as in RepLKNet."""

    def __init__(self, width=16):
        super().__init__()
        self.stem, self.head = conv_bn_relu(3, width), classifier(width)
        self.large = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.small = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.point = nn.Conv2d(width, width, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.point(F.gelu(self.large(x) + self.small(x))))


SMALL = normal((3, 8, 8))
CASES = (
    Case(
        "grouped_conv",
        THEME,
        stacked(lambda: conv_bn_relu(3, 12), lambda: conv_bn_relu(12, 20, groups=4), out=20),
        SMALL,
    ),
    Case(
        "grouped_twice",
        THEME,
        stacked(
            lambda: conv_bn_relu(3, 16),
            lambda: conv_bn_relu(16, 24, groups=4),
            lambda: conv_bn_relu(24, 12, groups=2),
            out=12,
        ),
        SMALL,
    ),
    Case(
        "depthwise_separable",
        THEME,
        stacked(
            lambda: conv_bn_relu(3, 12),
            lambda: conv_bn_relu(12, 12, groups=12),
            lambda: conv_bn_relu(12, 20, 1),
            lambda: conv_bn_relu(20, 20, 5, groups=20),
            out=20,
        ),
        SMALL,
    ),
    Case(
        "depthwise_multiplier",
        THEME,
        stacked(lambda: conv_bn_relu(3, 10), lambda: conv_bn_relu(10, 20, groups=10), out=20),
        SMALL,
    ),
    Case(
        "multiplier_of_input",
        THEME,
        # three filters for each input channel; what follows sees 9 channels
        stacked(lambda: conv_bn_relu(3, 9, groups=3), lambda: conv_bn_relu(9, 14, 1), out=14),
        SMALL,
    ),
    Case(
        "channel_shuffle_module",
        THEME,
        stacked(
            lambda: conv_bn_relu(3, 12),
            lambda: nn.ChannelShuffle(3),
            lambda: conv_bn_relu(12, 20, groups=4),
            out=20,
        ),
        SMALL,
    ),
    Case(
        "channel_shuffle_plain",
        THEME,
        stacked(lambda: conv_bn_relu(3, 12), lambda: Shuffle(3), lambda: conv_bn_relu(12, 20), out=20),
        SMALL,
    ),
    Case(
        "shufflenet_v1",
        THEME,
        stacked(
            lambda: conv_bn_relu(3, 16), lambda: ShuffleUnit(16, 12, 4), lambda: ShuffleUnit(16, 8, 2), out=16
        ),
        SMALL,
    ),
    Case(
        "shufflenet_v2",
        THEME,
        stacked(lambda: conv_bn_relu(3, 20), lambda: ShuffleUnitV2(20), lambda: ShuffleUnitV2(20), out=20),
        SMALL,
    ),
    Case(
        "resnext", THEME, stacked(lambda: conv_bn_relu(3, 14), lambda: ResNeXtBlock(14, 16, 4), out=14), SMALL
    ),
    Case(
        "ghost",
        THEME,
        stacked(
            lambda: conv_bn_relu(3, 10), lambda: GhostModule(10, 16), lambda: GhostModule(16, 13), out=13
        ),
        SMALL,
    ),
    Case(
        "mix_conv",
        THEME,
        stacked(
            lambda: conv_bn_relu(3, 18), lambda: MixConv(8, 6, 4), lambda: conv_bn_relu(18, 12, 1), out=12
        ),
        SMALL,
    ),
    Case("grouped_linear", THEME, GroupedLinear, normal((10,))),
    Case("group_attribute", THEME, GroupAttribute, SMALL),
    Case("large_kernel", THEME, LargeKernel, SMALL),
    Case(
        "grouped_transposed",
        THEME,
        lambda: nn.Sequential(
            conv_bn_relu(3, 12, stride=2),
            nn.ConvTranspose2d(12, 20, 2, 2, groups=4),
            nn.ReLU(),
            nn.Conv2d(20, 3, 1),
        ),
        SMALL,
    ),
    Case(
        "depthwise_transposed",
        THEME,
        lambda: nn.Sequential(
            conv_bn_relu(3, 14, stride=2),
            nn.ConvTranspose2d(14, 14, 4, 2, 1, groups=14),
            nn.ReLU(),
            nn.Conv2d(14, 3, 1),
        ),
        SMALL,
    ),
    Case(
        "depthwise1d",
        THEME,
        lambda: nn.Sequential(
            nn.Conv1d(4, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(12, 12, 5, padding=2, groups=12, bias=False),
            nn.BatchNorm1d(12),
            nn.Conv1d(12, 20, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(20, 5),
        ),
        normal((4, 12)),
    ),
    Case(
        "grouped3d",
        THEME,
        lambda: nn.Sequential(
            nn.Conv3d(2, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(12, 18, (3, 1, 1), padding=(1, 0, 0), groups=3),
            nn.ReLU(),
            nn.Conv3d(18, 18, (1, 3, 3), padding=(0, 1, 1), groups=18),
            nn.AdaptiveMaxPool3d(1),
            nn.Flatten(),
            nn.Linear(18, 5),
        ),
        normal((2, 4, 8, 8)),
    ),
    Case(
        "group_norm",
        THEME,
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 3),
            nn.GroupNorm(4, 12),
            nn.ReLU(),
            nn.Conv2d(12, 20, 3),
            nn.GroupNorm(5, 20),
            nn.ReLU(),
            classifier(20),
        ),
        SMALL,
        exact=False,
    ),
    Case(
        "group_norm_after_grouped",
        THEME,
        lambda: nn.Sequential(
            conv_bn_relu(3, 16),
            nn.Conv2d(16, 16, 3, groups=2),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 10, 3),
            nn.GroupNorm(1, 10),
            nn.SiLU(),
            classifier(10),
        ),
        SMALL,
        exact=False,
    ),
)
