"""Normalisation: over the batch, over channels, over groups, over weights, and dead channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "norms"


def normed(norm, hidden=12, width=20):
    """Two convolutions, each with the norm that ``norm(channels)`` gives."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, hidden, 3, padding=1),
        norm(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, width, 3, padding=1),
        norm(width),
        nn.ReLU(),
        classifier(width),
    )


def batch_norm1d():
    return nn.Sequential(
        nn.Linear(10, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Linear(20, 14),
        nn.BatchNorm1d(14),
        nn.Tanh(),
        nn.Linear(14, 5),
    )


def norm_first():
    """The norm of the input, and norms before the layers that use them."""
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(12),
        nn.Conv2d(12, 18, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(18),
        classifier(18),
    )


class ChannelLayerNorm(nn.Module):
    """ConvNeXt's LayerNorm of (B, C, H, W), by hand."""

    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.weight, self.bias, self.eps = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
            eps,
        )

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class PermutedLayerNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class HandRmsNorm(nn.Module):
    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(channels)), eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class RmsMlp(nn.Module):
    """The norm sits on the residual stream: exact once weight and eps are corrected for the width left."""

    def __init__(self, norm, width=12, hidden=20):
        super().__init__()
        self.embed, self.head = nn.Linear(8, width), nn.Linear(width, 5, bias=False)
        self.norm1, self.norm2 = norm(width), norm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.down(F.silu(self.up(self.norm1(x))))
        return self.head(self.norm2(x))


class LayerNormMlp(RmsMlp):
    """LayerNorm over the residual stream; only the hidden units of the block can be removed exactly."""

    def __init__(self):
        super().__init__(nn.LayerNorm)


class PixelNorm(nn.Module):
    """StyleGAN: each pixel's vector over its root mean square."""

    def forward(self, x):
        return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8)


class ResponseNorm(nn.Module):
    """ConvNeXt V2: each channel's norm over places, by its mean over channels, which can be corrected."""

    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = (
            nn.Parameter(torch.zeros(1, channels, 1, 1)),
            nn.Parameter(torch.zeros(1, channels, 1, 1)),
        )

    def forward(self, x):
        spread = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (x * (spread / (spread.mean(dim=1, keepdim=True) + 1e-6))) + self.beta + x


class FilterResponseNorm(nn.Module):
    """Normalised over places only, with a learned threshold instead of ReLU."""

    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta, self.tau = (nn.Parameter(torch.zeros(channels, 1, 1)) for _ in range(3))

    def forward(self, x):
        x = x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + 1e-6)
        return torch.max(self.gamma * x + self.beta, self.tau)


class Affine(nn.Module):
    """ResMLP and ActNorm: no statistics at all."""

    def __init__(self, channels):
        super().__init__()
        self.log_scale, self.shift = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return x * self.log_scale.exp().view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)


class InstanceBatchNorm(nn.Module):
    """IBN-Net: one half of the channels by instance, the other by batch."""

    def __init__(self, channels):
        super().__init__()
        self.half = channels // 2
        self.instance = nn.InstanceNorm2d(self.half, affine=True)
        self.batch = nn.BatchNorm2d(channels - self.half)

    def forward(self, x):
        first, second = torch.split(x, [self.half, x.shape[1] - self.half], 1)
        return torch.cat([self.instance(first.contiguous()), self.batch(second.contiguous())], 1)


class StandardConv2d(nn.Conv2d):
    """Weight standardisation: each filter's mean and variance run over all its input channels."""

    def forward(self, x):
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        std = self.weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5
        return F.conv2d(x, (self.weight - mean) / std, self.bias, self.stride, self.padding)


def standardised():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        StandardConv2d(12, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        classifier(16),
    )


class AdaptiveInstanceNorm(nn.Module):
    """Style transfer: the content's statistics are replaced by those of the style, channel by channel."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 14, 3, padding=1), nn.ReLU(), nn.Conv2d(14, 10, 3, padding=1)
        )
        self.decoder = nn.Sequential(nn.Conv2d(10, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 3, 1))

    def forward(self, x):
        x = self.encoder(x)
        style = x.flip(0)
        mean, std = style.mean((2, 3), keepdim=True), style.std((2, 3), keepdim=True)
        return self.decoder(F.instance_norm(x) * std + mean)


class Doubled(nn.Module):
    """Features beside new ones: the norm that follows spans two layers."""

    def __init__(self, inputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 20, 3, padding=1)

    def forward(self, x):
        return torch.cat([self.conv(x), x], dim=1)


class Dead(nn.Module):
    """Channels of scale 0 whose shift still reaches the next layer: a constant, but for the padded border."""

    def __init__(self, padding):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 12, 3, padding=padding, bias=False), nn.BatchNorm2d(12)
        self.head = classifier(12)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head(F.relu(self.bn2(self.conv2(x))))


class DeadResidual(Dead):
    """A dead channel of a branch is not dead in the sum."""

    def __init__(self):
        super().__init__(padding=1)
        self.conv3, self.bn3 = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)

    def forward(self, x):
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(F.relu(x + self.bn3(self.conv3(x))))


@torch.no_grad()
def half_dead(model):
    """Scale 0, shift as drawn, in every other channel of every batch norm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight[::2] = 0


@torch.no_grad()
def quite_dead(model):
    """Scale and shift 0: nothing left to correct."""
    half_dead(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias[::2] = 0


@torch.no_grad()
def low_thresholds(model):
    """Drawn high, a threshold hides its channel."""
    for module in model.modules():
        if isinstance(module, FilterResponseNorm):
            module.tau.abs_().neg_()


SMALL = normal((3, 8, 8))
VECTORS = normal((6, 8))
CASES = (
    Case("batch_norm1d", THEME, batch_norm1d, normal((10,))),
    Case("batch_norm_plain", THEME, normed(lambda n: nn.BatchNorm2d(n, affine=False)), SMALL),
    Case("batch_norm_of_batch", THEME, normed(lambda n: nn.BatchNorm2d(n, track_running_stats=False)), SMALL),
    Case("norm_first", THEME, norm_first, SMALL),
    Case("instance_norm", THEME, normed(nn.InstanceNorm2d), SMALL),
    Case("instance_norm_affine", THEME, normed(lambda n: nn.InstanceNorm2d(n, affine=True)), SMALL),
    Case(
        "instance_norm_stats",
        THEME,
        normed(lambda n: nn.InstanceNorm2d(n, affine=True, track_running_stats=True)),
        SMALL,
    ),
    Case(
        "instance_norm_plain_stats",
        THEME,
        normed(lambda n: nn.InstanceNorm2d(n, track_running_stats=True)),
        SMALL,
    ),
    Case("instance_batch_norm", THEME, normed(InstanceBatchNorm), SMALL),
    Case("adaptive_instance_norm", THEME, AdaptiveInstanceNorm, SMALL),
    Case("layer_norm_channels", THEME, normed(ChannelLayerNorm), SMALL, exact=False),
    Case("layer_norm_permuted", THEME, normed(PermutedLayerNorm), SMALL, exact=False),
    Case("layer_norm_all", THEME, normed(lambda n: nn.LayerNorm([n, 8, 8])), SMALL, exact=False),
    Case("layer_norm_places", THEME, normed(lambda n: nn.LayerNorm([8, 8])), SMALL),
    Case("layer_norm_mlp", THEME, LayerNormMlp, VECTORS, exact=False),
    Case("group_norm_single", THEME, normed(lambda n: nn.GroupNorm(1, n)), SMALL, exact=False),
    Case("group_norm_each", THEME, normed(lambda n: nn.GroupNorm(n, n)), SMALL),  # an instance norm in fact
    Case("rms_norm", THEME, lambda: RmsMlp(lambda n: nn.RMSNorm(n, eps=1e-5)), VECTORS),
    Case("rms_norm_by_hand", THEME, lambda: RmsMlp(HandRmsNorm), VECTORS),
    Case("pixel_norm", THEME, normed(lambda n: PixelNorm()), SMALL),
    Case("response_norm", THEME, normed(ResponseNorm), SMALL),
    Case("filter_response_norm", THEME, normed(FilterResponseNorm), SMALL, prepare=low_thresholds),
    Case("affine", THEME, normed(Affine), SMALL),
    Case("weight_standardisation", THEME, standardised, SMALL, exact=False),
    Case("dead_channels", THEME, lambda: Dead(padding=0), SMALL, prepare=half_dead),
    Case("dead_channels_padded", THEME, lambda: Dead(padding=1), SMALL, prepare=half_dead),
    Case("dead_channels_zero", THEME, lambda: Dead(padding=1), SMALL, prepare=quite_dead),
    Case("dead_residual", THEME, DeadResidual, SMALL, prepare=half_dead),
    Case(
        "norm_of_concat",
        THEME,
        lambda: nn.Sequential(
            conv_bn_relu(3, 12), Doubled(12), nn.BatchNorm2d(32), nn.ReLU(), classifier(32)
        ),
        SMALL,
    ),
)
