"""Plain and branched convolutional networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "convolutional"


class PlainCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 20, 3, padding=1)
        self.fc1 = nn.Linear(20 * 4 * 4, 24)
        self.fc2 = nn.Linear(24, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class ViewCnn(PlainCnn):
    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(F.relu(self.fc1(x)))


def conv1d():
    return nn.Sequential(
        nn.Conv1d(4, 12, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(12, 20, 3, padding=1),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * 6, 5),
    )


def conv3d():
    return nn.Sequential(
        nn.Conv3d(2, 10, 3, padding=1),
        nn.BatchNorm3d(10),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(10, 14, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(14 * 2 * 4 * 4, 5),
    )


def vgg():
    return nn.Sequential(
        conv_bn_relu(3, 12),
        conv_bn_relu(12, 16),
        nn.MaxPool2d(2),
        conv_bn_relu(16, 24),
        nn.AdaptiveAvgPool2d((2, 2)),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(24 * 4, 32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 5),
    )


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn_relu(3, 12)
        self.branch1 = conv_bn_relu(12, 8, 1)
        self.branch3 = nn.Sequential(conv_bn_relu(12, 10, 1), conv_bn_relu(10, 14))
        self.branch5 = nn.Sequential(conv_bn_relu(12, 6, 1), conv_bn_relu(6, 10, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn_relu(12, 6, 1))
        self.head = classifier(8 + 14 + 10 + 6)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([self.branch1(x), self.branch3(x), self.branch5(x), self.pool(x)], 1))


class Fire(nn.Module):
    """SqueezeNet's squeeze and expand."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.squeeze = nn.Conv2d(16, 8, 1)
        self.expand1 = nn.Conv2d(8, 12, 1)
        self.expand3 = nn.Conv2d(8, 20, 3, padding=1)
        self.classify = nn.Conv2d(32, 5, 1)

    def forward(self, x):
        x = F.relu(self.squeeze(F.relu(self.stem(x))))
        x = torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)
        return self.classify(x).mean((2, 3))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = conv_bn_relu(3, 10), conv_bn_relu(10, 14)
        self.bottom = conv_bn_relu(14, 22)
        self.up2, self.up1 = nn.ConvTranspose2d(22, 12, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.merge2, self.merge1 = conv_bn_relu(14 + 12, 16), conv_bn_relu(10 + 8, 12)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.merge2(torch.cat([second, self.up2(x)], dim=1))
        x = self.merge1(torch.cat([first, self.up1(x)], dim=1))
        return self.out(x)


class Hourglass(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down, self.bottom = conv_bn_relu(3, 12), conv_bn_relu(12, 18), conv_bn_relu(18, 12)
        self.skip = conv_bn_relu(12, 12, 1)
        self.out = nn.Conv2d(12, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        low = self.bottom(self.down(F.max_pool2d(x, 2)))
        return self.out(self.skip(x) + F.interpolate(low, scale_factor=2, mode="nearest"))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 20, 3, 2, 1), nn.BatchNorm2d(20), nn.ReLU()
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(20, 14, 4, 2, 1),
            nn.BatchNorm2d(14),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(14, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, x):
        return self.decoder(self.encoder(x))


class SegNet(nn.Module):
    """Max-pooling indices travel around the bottleneck."""

    def __init__(self):
        super().__init__()
        self.encode, self.middle = conv_bn_relu(3, 12), conv_bn_relu(12, 12)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.decode = nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, x):
        x, indices = self.pool(self.encode(x))
        return self.decode(self.unpool(self.middle(x), indices))


class PyramidPooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn_relu(3, 16)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Conv2d(16, 6, 1), nn.ReLU()) for size in (1, 2, 4)
        )
        self.out = nn.Conv2d(16 + 3 * 6, 3, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        pooled = [
            F.interpolate(stage(x), size=x.shape[2:], mode="bilinear", align_corners=False)
            for stage in self.stages
        ]
        return self.out(torch.cat([x, *pooled], 1))


class AtrousPyramid(nn.Module):
    """DeepLab's parallel dilated convolutions with an image-level branch."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn_relu(3, 14)
        self.rates = nn.ModuleList(nn.Conv2d(14, 8, 3, padding=rate, dilation=rate) for rate in (1, 2, 3))
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(14, 8, 1), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(32, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        image = self.image(x).expand(-1, -1, *x.shape[2:])
        return self.out(self.project(torch.cat([rate(x) for rate in self.rates] + [image], 1)))


class BlurPool(nn.Module):
    """Anti-aliasing: one fixed kernel for as many channels as come."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv_bn_relu(3, 12), conv_bn_relu(12, 18)
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row)[None, None])
        self.head = classifier(18)

    def forward(self, x):
        x = self.conv1(x)
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        x = F.conv2d(x, self.kernel.expand(x.shape[1], -1, -1, -1), stride=2, groups=x.shape[1])
        return self.head(self.conv2(x))


class SoftArgmax(nn.Module):
    """Key points: the softmax runs over positions, one map a key point."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv_bn_relu(3, 12), nn.Conv2d(12, 16, 3, padding=1))
        self.register_buffer("places", torch.linspace(-1, 1, 8))
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.features(x)
        share = F.softmax(x.flatten(2), dim=-1).view_as(x)
        across = (share.sum(2) * self.places).sum(-1)
        down = (share.sum(3) * self.places).sum(-1)
        return self.head(torch.cat([across, down], 1))


class GeneralizedMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv_bn_relu(3, 12), conv_bn_relu(12, 20))
        self.power = nn.Parameter(torch.tensor([3.0]))
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.features(x).clamp(min=1e-3).pow(self.power)
        return self.head(x.mean(dim=(-2, -1)).pow(1 / self.power))


class GridSampled(nn.Module):
    """A spatial transformer: a small branch turns the feature map before the next convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = conv_bn_relu(3, 10), conv_bn_relu(10, 16)
        self.locate = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 12), nn.ReLU())
        self.theta = nn.Linear(12, 6)
        self.head = classifier(16)

    def forward(self, x):
        x = self.stem(x)
        grid = F.affine_grid(self.theta(self.locate(x)).view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.head(self.conv(F.grid_sample(x, grid, align_corners=False)))


def activated(*activations):
    """A network whose hidden layers have the given activations."""
    layers = []
    for width, activation in zip((12, 16, 20), activations):
        layers += [nn.LazyConv2d(width, 3, padding=1), activation]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))
    network(torch.zeros(1, 3, 8, 8))
    return network


def asymmetric():
    return nn.Sequential(
        nn.Conv2d(3, 12, (1, 5), padding=(0, 2)),
        nn.Conv2d(12, 16, (5, 1), padding=(2, 0), bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 20, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.ReflectionPad2d(1),
        nn.Conv2d(20, 5, 10),
        nn.Flatten(),
    )


IMAGE, SMALL = normal((3, 16, 16)), normal((3, 8, 8))
CASES = (
    Case("plain_cnn", THEME, PlainCnn, IMAGE),
    Case("view_cnn", THEME, ViewCnn, IMAGE),
    Case("conv1d_flatten", THEME, conv1d, normal((4, 12))),
    Case("conv3d_flatten", THEME, conv3d, normal((2, 4, 8, 8))),
    Case("vgg", THEME, vgg, IMAGE),
    Case("inception", THEME, Inception, SMALL),
    Case("fire", THEME, Fire, IMAGE),
    Case("unet", THEME, UNet, IMAGE),
    Case("hourglass", THEME, Hourglass, SMALL),
    Case("transposed_autoencoder", THEME, Autoencoder, IMAGE),
    Case("max_unpool", THEME, SegNet, SMALL),
    Case("pyramid_pooling", THEME, PyramidPooling, SMALL),
    Case("atrous_pyramid", THEME, AtrousPyramid, SMALL),
    Case("blur_pool", THEME, BlurPool, SMALL),
    Case("soft_argmax", THEME, SoftArgmax, SMALL),
    Case("generalized_mean", THEME, GeneralizedMean, SMALL),
    Case("grid_sample", THEME, GridSampled, SMALL),
    Case("asymmetric_kernels", THEME, asymmetric, SMALL),
    Case("prelu_one", THEME, lambda: activated(nn.PReLU(), nn.PReLU(), nn.ReLU()), SMALL),
    Case("prelu_per_channel", THEME, lambda: activated(nn.PReLU(12), nn.PReLU(16), nn.ReLU()), SMALL),
    Case("hard_swish", THEME, lambda: activated(nn.Hardswish(), nn.Hardsigmoid(), nn.ReLU6()), SMALL),
    # Zero in is not zero out: what a removed channel left behind is a constant, but for the padded border.
    Case("sigmoid_softplus", THEME, lambda: activated(nn.Sigmoid(), nn.Softplus(), nn.Sigmoid()), SMALL),
    Case("smooth_activations", THEME, lambda: activated(nn.GELU(), nn.SiLU(), nn.Mish()), SMALL),
)
