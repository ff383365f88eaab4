"""Skip connections: sums and concatenations that tie the widths of distant layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "residual"


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.reduce, self.conv = conv_bn_relu(width, hidden, 1), conv_bn_relu(hidden, hidden)
        self.expand = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        return F.relu(x + self.expand(self.conv(self.reduce(x))))


class PreActivation(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.project = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x):
        out = F.relu(self.bn1(x))
        return self.project(out) + self.conv2(F.relu(self.bn2(self.conv1(out))))


class PaddedBlock(nn.Module):
    """Option A of the CIFAR ResNets: the shortcut strides, and pads the new channels with zeros."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.added = outputs - inputs

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        before = self.added // 2
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.added - before))
        return F.relu(out + shortcut)


class InvertedResidual(nn.Module):
    """MobileNetV2: expand, depthwise, project without activation."""

    def __init__(self, inputs, outputs, expand=2):
        super().__init__()
        hidden = inputs * expand
        self.conv = nn.Sequential(
            conv_bn_relu(inputs, hidden, 1),
            conv_bn_relu(hidden, hidden, 3, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.use_residual = inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.use_residual else self.conv(x)


class DenseBlock(nn.Module):
    def __init__(self, inputs, growth, layers):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + index * growth),
                nn.ReLU(),
                nn.Conv2d(inputs + index * growth, growth, 3, padding=1, bias=False),
            )
            for index in range(layers)
        )

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class RepVgg(nn.Module):
    """Three branches of one shape, one of them only a norm."""

    def __init__(self, width):
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.point = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.identity = nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(self.dense(x) + self.point(x) + self.identity(x))


class Res2Net(nn.Module):
    """Each quarter of the channels also sees the quarter before it."""

    def __init__(self, inputs, width, scale=4):
        super().__init__()
        self.width, self.scale = width, scale
        self.reduce = conv_bn_relu(inputs, width * scale, 1)
        self.convs = nn.ModuleList(conv_bn_relu(width, width) for _ in range(scale - 1))
        self.expand = nn.Conv2d(width * scale, inputs, 1)

    def forward(self, x):
        parts = torch.split(self.reduce(x), self.width, 1)
        outputs = [parts[0]]
        for part, conv in zip(parts[1:], self.convs):
            outputs.append(conv(part if len(outputs) == 1 else part + outputs[-1]))
        return F.relu(x + self.expand(torch.cat(outputs, 1)))


class DualPath(nn.Module):
    """DPN: some output channels are added to the residual path, the others appended to the dense path."""

    def __init__(self, residual, dense, growth):
        super().__init__()
        self.residual = residual
        self.conv = nn.Sequential(
            conv_bn_relu(residual + dense, 14), nn.Conv2d(14, residual + growth, 3, padding=1)
        )

    def forward(self, x):
        out = self.conv(x)
        summed = x[:, : self.residual] + out[:, : self.residual]
        return torch.cat([summed, x[:, self.residual :], out[:, self.residual :]], dim=1)


class Reversible(nn.Module):
    """RevNet: two halves take turns to update each other."""

    def __init__(self, half):
        super().__init__()
        self.first, self.second = conv_bn_relu(half, half), conv_bn_relu(half, half)

    def forward(self, x):
        one, two = x.chunk(2, dim=1)
        one = one + self.first(two)
        return torch.cat([one, two + self.second(one)], dim=1)


class LayerScale(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.body = nn.Sequential(conv_bn_relu(width, hidden, 1), nn.Conv2d(hidden, width, 1))
        self.gamma = nn.Parameter(1e-5 * torch.ones(width, 1, 1))

    def forward(self, x):
        return x + self.gamma * self.body(x)


class ReZero(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = conv_bn_relu(width, width)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.alpha * self.body(x)


class StochasticDepth(nn.Module):
    """Drops whole samples of the branch while training; in eval mode it is a plain block."""

    def __init__(self, width, rate=0.2):
        super().__init__()
        self.body, self.rate = Bottleneck(width, 8), rate

    def forward(self, x):
        branch = self.body(x)
        if self.training:
            kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.rate
            branch = branch * kept / (1 - self.rate)
        return x + branch


class HighResolution(nn.Module):
    """HRNet: two resolutions, each the sum of both."""

    def __init__(self):
        super().__init__()
        self.high, self.low = conv_bn_relu(3, 10), conv_bn_relu(3, 16, stride=2)
        self.down = nn.Sequential(nn.Conv2d(10, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.up = nn.Sequential(
            nn.Conv2d(16, 10, 1, bias=False), nn.BatchNorm2d(10), nn.Upsample(scale_factor=2)
        )
        self.head_high, self.head_low = classifier(10), classifier(16)

    def forward(self, x):
        high, low = self.high(x), self.low(x)
        high, low = F.relu(high + self.up(low)), F.relu(low + self.down(high))
        return self.head_high(high) + self.head_low(low)


class InputSkip(nn.Module):
    """Image restoration: the network predicts what to add to its input."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv_bn_relu(3, 12), Bottleneck(12, 6), nn.Conv2d(12, 3, 3, padding=1))

    def forward(self, x):
        return x + self.body(x)


class StackedMean(nn.Module):
    """FractalNet's join: the mean over paths, by way of a new axis."""

    def __init__(self):
        super().__init__()
        self.paths = nn.ModuleList(
            [conv_bn_relu(3, 12), nn.Sequential(conv_bn_relu(3, 8), conv_bn_relu(8, 12))]
        )
        self.head = classifier(12)

    def forward(self, x):
        return self.head(torch.stack([path(x) for path in self.paths]).mean(0))


def stemmed(width, *blocks, out=None):
    return nn.Sequential(conv_bn_relu(3, width), *blocks, classifier(out or width))


SMALL = normal((3, 8, 8))
CASES = (
    Case(
        "resnet",
        THEME,
        lambda: stemmed(12, BasicBlock(12, 12), BasicBlock(12, 20, 2), out=20),
        normal((3, 16, 16)),
    ),
    Case("bottleneck", THEME, lambda: stemmed(20, Bottleneck(20, 8), Bottleneck(20, 12)), SMALL),
    Case(
        "preactivation",
        THEME,
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), PreActivation(12, 12), PreActivation(12, 20), classifier(20)
        ),
        SMALL,
    ),
    Case("option_a_shortcut", THEME, lambda: stemmed(12, PaddedBlock(12, 20), out=20), SMALL),
    Case(
        "option_a_twice",
        THEME,
        lambda: stemmed(8, PaddedBlock(8, 12), PaddedBlock(12, 24), out=24),
        normal((3, 16, 16)),
    ),
    Case(
        "mobilenet_v2",
        THEME,
        lambda: stemmed(12, InvertedResidual(12, 12), InvertedResidual(12, 20), out=20),
        SMALL,
    ),
    Case("densenet", THEME, lambda: stemmed(12, DenseBlock(12, 6, 3), out=30), SMALL),
    Case(
        "densenet_transition",
        THEME,
        lambda: stemmed(
            8, DenseBlock(8, 6, 2), conv_bn_relu(20, 10, 1), nn.AvgPool2d(2), DenseBlock(10, 5, 2), out=20
        ),
        SMALL,
    ),
    Case("repvgg", THEME, lambda: stemmed(12, RepVgg(12), RepVgg(12)), SMALL),
    Case("res2net", THEME, lambda: stemmed(20, Res2Net(20, 5)), SMALL),
    Case("dual_path", THEME, lambda: stemmed(16, DualPath(10, 6, 5), DualPath(10, 11, 5), out=26), SMALL),
    Case("reversible", THEME, lambda: stemmed(16, Reversible(8), Reversible(8)), SMALL),
    Case("layer_scale", THEME, lambda: stemmed(12, LayerScale(12, 20), LayerScale(12, 24)), SMALL),
    Case("rezero", THEME, lambda: stemmed(12, ReZero(12), ReZero(12)), SMALL),
    Case("stochastic_depth", THEME, lambda: stemmed(12, StochasticDepth(12)), SMALL),
    Case("high_resolution", THEME, HighResolution, SMALL),
    Case("input_skip", THEME, InputSkip, SMALL),
    Case("stacked_mean", THEME, StackedMean, SMALL),
)
