"""Operations in which units see their order, their number or their values: what feeds these must stay whole.

Where another layer of the case can be pruned, a tool should; where ``frozen``, it should say why it does not.
``exact`` is False for those that a tool may treat like a softmax over channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "opaque"


class Branch(nn.Module):
    """An ``if`` on data: a trace would see one side only."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(10, 20), nn.Linear(20, 14), nn.Linear(20, 14)
        self.head = nn.Linear(14, 5)

    def forward(self, x):
        left = x.mean() > 0
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.left(x) if left else self.right(x)))


class Halting(nn.Module):
    """A loop whose length is read from the data with ``item``."""

    def __init__(self):
        super().__init__()
        self.stem, self.step, self.head = nn.Linear(10, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        for _ in range(1 + int(x.abs().sum().item()) % 3):
            x = torch.tanh(self.step(x))
        return self.head(x)


class Condition(nn.Module):
    """The same choice as ``Branch``, as an operation of the graph."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(10, 20), nn.Linear(20, 14), nn.Linear(20, 14)
        self.head = nn.Linear(14, 5)

    def forward(self, x):
        left = x.mean() > 0
        x = torch.cond(left, self.left, self.right, (F.relu(self.stem(x)),))
        return self.head(F.relu(x))


class Between(nn.Module):
    """``step`` sees all channels of the stem, which must stay; the convolution after it can be pruned."""

    def __init__(self, step, width=12):
        super().__init__()
        self.stem, self.step = nn.Conv2d(3, 12, 3, padding=1), step
        self.conv, self.head = conv_bn_relu(width, 20), classifier(20)

    def forward(self, x):
        return self.head(self.conv(self.step(self.stem(x))))


class EfficientChannelAttention(nn.Module):
    """ECA: a convolution along the axis of channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = x.mean((2, 3)).unsqueeze(1)
        return x * torch.sigmoid(self.conv(y)).transpose(1, 2).unsqueeze(-1)


class ChannelsAsDepth(nn.Module):
    """Channels become the depth of a 3d convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(x.unsqueeze(1)).squeeze(1)


class StrongestChannels(nn.Module):
    """The channels of largest mean, whichever they are."""

    def forward(self, x):
        best = x.mean((2, 3)).topk(8, dim=1).indices
        return x.gather(1, best[:, :, None, None].expand(-1, -1, *x.shape[2:]))


class Loop(nn.Module):
    """A Python loop over channels, one operation each, by the channel's number."""

    def forward(self, x):
        return torch.stack([x[:, c] * (1 + 0.1 * c) + x[:, c - 1] for c in range(12)], dim=1)


class Straight(torch.autograd.Function):
    """An operation with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        return torch.sign(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Binary(nn.Module):
    """The sign of a zeroed channel is 0: exact all the same."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 12, 3, padding=1), conv_bn_relu(12, 20), classifier(20)

    def forward(self, x):
        return self.head(self.conv(Straight.apply(self.stem(x))))


class WidthChecked(nn.Module):
    """The code asks for a width, and takes another way if it is not met."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 12), conv_bn_relu(12, 20), classifier(20)

    def forward(self, x):
        x = self.stem(x)
        assert x.shape[1] == 12
        x = self.conv(x)
        return self.head(x if x.shape[1] == 20 else torch.zeros_like(x))


class WidthUsed(nn.Module):
    """The width of the features enters the arithmetic."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 12), conv_bn_relu(12, 20), classifier(20)

    def forward(self, x):
        x = self.stem(x)
        x = self.conv(x / x.shape[1] ** 0.5)
        return self.head(x * (20 / x.size(1)))


class Fourier(nn.Module):
    """FNet: a transform over tokens and channels takes the place of attention; the MLP can be pruned."""

    def __init__(self, width=16):
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(8, width), nn.Linear(width, 24), nn.Linear(24, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + torch.fft.fft2(x).real
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class SpectralConv(nn.Module):
    """FNO: a transform over places, complex weights over channels as two real parts."""

    def __init__(self, width=10, modes=3):
        super().__init__()
        self.modes = modes
        self.lift, self.point = nn.Conv1d(2, width, 1), nn.Conv1d(width, 14, 1)
        self.real, self.imaginary = (
            nn.Parameter(torch.randn(width, 14, modes)),
            nn.Parameter(torch.randn(width, 14, modes)),
        )
        self.out = nn.Conv1d(14, 2, 1)

    def forward(self, x):
        x = self.lift(x)
        spectrum = torch.fft.rfft(x)[..., : self.modes]
        spectrum = torch.einsum("bim,iom->bom", spectrum, torch.complex(self.real, self.imaginary))
        return self.out(F.gelu(torch.fft.irfft(spectrum, n=x.shape[-1]) + self.point(x)))


class Covariance(nn.Module):
    """Inverse of a Gram matrix over channels: every entry depends on every channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc, self.head = nn.Conv2d(3, 6, 3), nn.Linear(36, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2)
        gram = x @ x.transpose(1, 2) / x.shape[2] + torch.eye(6)
        return self.head(F.relu(self.fc(torch.linalg.inv(gram).flatten(1))))


class InputWide(nn.Module):
    """Depthwise layers on the input's own channels, then the output: no width is free."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 6, 3, groups=6)
        self.out = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.out(F.relu(self.second(F.relu(self.first(x)))))


class InputSum(nn.Module):
    """A convolution added to the input, and the sum is the output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 5, padding=2)

    def forward(self, x):
        x = x + torch.tanh(self.first(x))
        return x + torch.tanh(self.second(x))


class Spread(nn.Module):
    """The standard deviation over channels joins them as one more."""

    def forward(self, x):
        return torch.cat([x, x.std(1, keepdim=True)], dim=1)


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def between(function, width=12):
    return lambda: Between(Applied(function), width)


SMALL, ROW = normal((3, 8, 8)), normal((10,))
CASES = (
    Case("data_dependent_branch", THEME, Branch, ROW, frozen=True),
    Case("data_dependent_loop", THEME, Halting, ROW, frozen=True),
    Case("cond", THEME, Condition, ROW),
    Case("all_channels_taken", THEME, InputWide, normal((6, 8, 8)), frozen=True),
    Case("input_sum", THEME, InputSum, SMALL, frozen=True),
    Case("efficient_channel_attention", THEME, lambda: Between(EfficientChannelAttention()), SMALL),
    Case("channels_as_depth", THEME, lambda: Between(ChannelsAsDepth()), SMALL),
    Case("strongest_channels", THEME, lambda: Between(StrongestChannels(), 8), SMALL),
    Case("loop_over_channels", THEME, lambda: Between(Loop()), SMALL),
    Case("spread_over_channels", THEME, lambda: Between(Spread(), 13), SMALL, exact=False),
    Case(
        "local_response_norm", THEME, lambda: Between(nn.LocalResponseNorm(3, alpha=0.5)), SMALL, exact=False
    ),
    Case("cumulative_sum", THEME, between(lambda x: x.cumsum(1)), SMALL),
    Case("sorted_channels", THEME, between(lambda x: x.sort(1).values), SMALL),
    Case("neighbour_difference", THEME, between(lambda x: x[:, 1:] - x[:, :-1], 11), SMALL),
    Case(
        "pooled_channels",
        THEME,
        between(lambda x: F.max_pool1d(x.flatten(2).mT, 2).mT.unflatten(2, (8, 8)), 6),
        SMALL,
    ),
    Case(
        "interpolated_channels",
        THEME,
        between(lambda x: F.interpolate(x[:, None], (9, 8, 8))[:, 0], 9),
        SMALL,
    ),
    Case("log_softmax_channels", THEME, between(lambda x: x.log_softmax(1)), SMALL, exact=False),
    Case(
        "argmax_channels", THEME, between(lambda x: F.one_hot(x.argmax(1), 12).movedim(3, 1).float()), SMALL
    ),
    Case("binary_straight_through", THEME, Binary, SMALL),
    Case("width_checked", THEME, WidthChecked, SMALL),
    Case("width_used", THEME, WidthUsed, SMALL),
    Case("fourier_mixing", THEME, Fourier, normal((6, 8))),
    Case("spectral_conv", THEME, SpectralConv, normal((2, 12))),
    Case("inverse_covariance", THEME, Covariance, SMALL),
)
