"""Reference networks for demo, tests and benchmarks: one of each common kind, all small.

Every one takes grey images of shape (n, 1, 28, 28), float32, and answers logits (n, 10).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 28  # pixels; also the length of a row sequence
CLASSES = 10


class MnistNet(nn.Sequential):
    """The reference example: two convolutions and one linear layer; 50,186 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, CLASSES),
        )


class ResidualBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))): (n, cin, h, w) -> (n, cout, h/stride, w/stride).

    The shortcut is a 1x1 convolution where shapes change. He et al. 2015, arXiv:1512.03385.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else projection(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)))
        inner = self.norm2(self.conv2(inner))
        return functional.relu(inner + self.shortcut(x))


def projection(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


class FashionResNet(nn.Module):
    """Stem, three residual blocks of 16, 32 and 64 channels, mean over space, linear layer.

    77,754 parameters; feature maps (16, 28, 28), (32, 14, 14), (64, 7, 7).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(
            ResidualBlock(16, 16), ResidualBlock(16, 32, stride=2), ResidualBlock(32, 64, stride=2)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(images)))
        return logits


class DeepResNet(FashionResNet):
    """The same with two blocks a stage: 174,970 parameters."""

    def __init__(self) -> None:
        FashionResNet.__init__(self)
        pairs = ((16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.blocks = nn.Sequential(*(ResidualBlock(*pair) for pair in pairs))


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; Sandler et al. 2018, arXiv:1801.04381."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, widen: int = 4) -> None:
        super().__init__()
        inner = inputs * widen
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.whole = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = self.body(features)
        return features + added if self.whole else added


class MobileNet(nn.Sequential):
    """A small MobileNetV2: 38,618 parameters as it is, most of its work in depthwise and 1x1 convolutions."""

    def __init__(self, channels: int = 1, classes: int = CLASSES) -> None:
        super().__init__(
            nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            InvertedResidual(16, 24, stride=2), InvertedResidual(24, 24),
            InvertedResidual(24, 40, stride=2), InvertedResidual(40, 40),
            nn.Sequential(nn.Conv2d(40, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU6()),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes),
        )  # fmt: skip


class Mlp(nn.Sequential):
    """Pixels (n, 784) -> ``hidden`` -> ``hidden`` -> logits."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(SIDE * SIDE, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, CLASSES),
        )


class LstmClassifier(nn.Module):
    """Reads an image row by row: (n, 28 steps, 28 values) -> last state (n, hidden) -> logits."""

    def __init__(self, hidden: int = 64, layers: int = 1) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.lstm(images.squeeze(1))
        logits: Tensor = self.head(states[:, -1])
        return logits


class TinyEncoder(nn.Module):
    """A transformer encoder over image rows: 28 tokens (n, 28, width) -> mean token -> logits."""

    def __init__(self, width: int = 48, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, width)
        self.place = nn.Parameter(torch.randn(SIDE, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.squeeze(1)) + self.place
        logits: Tensor = self.head(self.encoder(tokens).mean(1))
        return logits
