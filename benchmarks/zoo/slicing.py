"""Parts of the channel axis: taken, moved, repeated, padded and put together again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "slicing"


class Between(nn.Module):
    """Two convolutions with ``step`` between them: a function of the features, ``width`` channels wide."""

    def __init__(self, step, inputs, width):
        super().__init__()
        self.stem, self.step, self.conv, self.head = (
            conv_bn_relu(3, inputs),
            step,
            conv_bn_relu(width, 14),
            classifier(14),
        )

    def forward(self, x):
        return self.head(self.conv(self.step(self.stem(x))))


class ChunkTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 20), conv_bn_relu(10, 10), classifier(20)

    def forward(self, x):
        kept, changed = torch.chunk(self.stem(x), 2, dim=1)
        return self.head(torch.cat((kept, self.conv(changed)), dim=1))


class ChunkThree(nn.Module):
    """Unequal use of three equal parts."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = conv_bn_relu(3, 24), conv_bn_relu(8, 10), conv_bn_relu(8, 10)
        self.head = classifier(18)

    def forward(self, x):
        one, two, three = self.stem(x).chunk(3, dim=1)
        return self.head(torch.cat([self.left(one) * self.right(two), three], 1))


class SplitUnequal(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.small, self.large = conv_bn_relu(3, 20), conv_bn_relu(6, 8), conv_bn_relu(14, 12)
        self.head = classifier(20)

    def forward(self, x):
        small, large = torch.split(self.stem(x), [6, 14], dim=1)
        return self.head(torch.cat([self.large(large), self.small(small)], 1))


class SplitAttribute(nn.Module):
    """The size of the parts is an attribute."""

    def __init__(self, part=7):
        super().__init__()
        self.part = part
        self.stem = conv_bn_relu(3, 3 * part)
        self.convs = nn.ModuleList(conv_bn_relu(part, 10) for _ in range(3))
        self.head = classifier(10)

    def forward(self, x):
        parts = self.stem(x).split(self.part, dim=1)
        return self.head(sum(conv(part) for conv, part in zip(self.convs, parts)))


class HalfAttribute(nn.Module):
    """The place of the cut is an attribute."""

    def __init__(self, width=20):
        super().__init__()
        self.half = width // 2
        self.stem, self.conv = conv_bn_relu(3, width), conv_bn_relu(self.half, 12)
        self.head = classifier(12 + self.half)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([self.conv(x[:, : self.half]), x[:, self.half :]], 1))


class PartialConv(nn.Module):
    """FasterNet: the convolution is written over the first channels in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.part, self.head = conv_bn_relu(3, 20), nn.Conv2d(6, 6, 3, padding=1), classifier(20)

    def forward(self, x):
        x = self.stem(x)
        out = x.clone()
        out[:, :6] = self.part(x[:, :6])
        return self.head(F.relu(out))


class Unbind(nn.Module):
    """The frames of a clip, one convolution each."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(2, 12, (1, 3, 3), padding=(0, 1, 1))
        self.convs = nn.ModuleList(conv_bn_relu(12, 16) for _ in range(3))
        self.head = classifier(16)

    def forward(self, x):
        frames = torch.unbind(F.relu(self.stem(x)), dim=2)
        return self.head(torch.stack([conv(frame) for conv, frame in zip(self.convs, frames)], 1).sum(1))


class UnbindChannels(nn.Module):
    """Channels viewed as pairs, the pairs taken apart: a complex product."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3), classifier(16)

    def forward(self, x):
        a, b = self.left(x).unflatten(1, (8, 2)).unbind(2)
        c, d = self.right(x).unflatten(1, (8, 2)).unbind(2)
        return self.head(torch.stack([a * c - b * d, a * d + b * c], 2).flatten(1, 2))


class Permuted(nn.Module):
    """The order of the channels is a buffer."""

    def __init__(self, index):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 20), conv_bn_relu(len(index), 14), classifier(14)
        self.register_buffer("index", torch.tensor(index))

    def forward(self, x):
        return self.head(self.conv(self.stem(x)[:, self.index]))


class IndexSelect(Permuted):
    def forward(self, x):
        return self.head(self.conv(torch.index_select(self.stem(x), 1, self.index)))


class RolledSum(nn.Module):
    """A channel is added to its neighbour: removing one takes the whole ring along."""

    def __init__(self, shift):
        super().__init__()
        self.stem, self.shift = conv_bn_relu(3, 12), shift
        self.conv, self.head = conv_bn_relu(12, 18), classifier(18)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.conv(x + torch.roll(x, self.shift, dims=1)))


class FlippedSum(nn.Module):
    """Removing a channel takes its mirror image along."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 12), conv_bn_relu(12, 18), classifier(18)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.conv(x + x.flip(1)))


class MaskedByConstant(nn.Module):
    """``where`` with a mask over channels that is a buffer."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 16), conv_bn_relu(16, 12), classifier(12)
        self.register_buffer("mask", (torch.arange(16) % 3 == 0).view(1, 16, 1, 1))

    def forward(self, x):
        x = self.stem(x)
        x = torch.where(self.mask, x, torch.tensor(0.5))
        return self.head(self.conv(x.masked_fill(x > 2, 1.0)))


class Expanded(nn.Module):
    """One vector for all pixels, beside the features of each."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = conv_bn_relu(3, 12), nn.Linear(12, 8)
        self.conv, self.head = conv_bn_relu(20, 14, 1), classifier(14)

    def forward(self, x):
        x = self.stem(x)
        whole = F.relu(self.fc(x.mean((2, 3))))
        whole = whole[:, :, None, None].expand(-1, -1, 8, 8)
        return self.head(self.conv(torch.cat([x, whole], 1)))


class Shifted(nn.Module):
    """TSM: some channels move by a pixel, the others stay."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 16), conv_bn_relu(16, 20, 1), classifier(20)

    def forward(self, x):
        x = self.stem(x)
        out = torch.zeros_like(x)
        out[:, :4, 1:] = x[:, :4, :-1]
        out[:, 4:8, :-1] = x[:, 4:8, 1:]
        out[:, 8:] = x[:, 8:]
        return self.head(self.conv(out))


def between(step, inputs=12, width=12):
    return lambda: Between(step, inputs, width)


SMALL = normal((3, 8, 8))
CASES = (
    Case("chunk_two", THEME, ChunkTwo, SMALL),
    Case("chunk_three", THEME, ChunkThree, SMALL),
    Case("split_unequal", THEME, SplitUnequal, SMALL),
    Case("split_attribute", THEME, SplitAttribute, SMALL),
    Case("half_attribute", THEME, HalfAttribute, SMALL),
    Case("partial_conv", THEME, PartialConv, SMALL),
    Case("unbind_frames", THEME, Unbind, normal((2, 3, 8, 8))),
    Case("unbind_channels", THEME, UnbindChannels, SMALL),
    Case("literal_slice", THEME, between(lambda x: x[:, :8], 12, 8), SMALL),  # the last four reach nothing
    Case("strided_slice", THEME, between(lambda x: x[:, ::2], 20, 10), SMALL),
    Case("strided_halves", THEME, between(lambda x: x[:, ::2] * x[:, 1::2], 20, 10), SMALL),
    Case("narrow", THEME, between(lambda x: x.narrow(1, 3, 9), 16, 9), SMALL),
    Case("permuted_by_buffer", THEME, lambda: Permuted([(7 * i) % 20 for i in range(20)]), SMALL),
    Case("index_select", THEME, lambda: IndexSelect([0, 2, 3, 5, 8, 13, 19, 4]), SMALL),
    Case("index_with_repeats", THEME, lambda: Permuted([0, 1, 1, 2, 3, 3, 3, 9, 8, 7, 6, 5]), SMALL),
    Case("flip", THEME, between(lambda x: x.flip(1)), SMALL),
    Case("flipped_sum", THEME, FlippedSum, SMALL),
    Case("roll", THEME, between(lambda x: torch.roll(x, 5, 1)), SMALL),
    Case("rolled_sum", THEME, lambda: RolledSum(4), SMALL),  # four rings of three
    Case("concat_with_itself", THEME, between(lambda x: torch.cat([x, x], 1), 12, 24), SMALL),
    Case("concat_with_negative", THEME, between(lambda x: torch.cat([x, -x], 1).relu(), 10, 20), SMALL),
    Case("stack_sum", THEME, between(lambda x: torch.stack([x, x.sigmoid()], 0).sum(0)), SMALL),
    Case("repeat", THEME, between(lambda x: x.repeat(1, 2, 1, 1), 10, 20), SMALL),
    Case("repeat_interleave", THEME, between(lambda x: x.repeat_interleave(2, dim=1), 10, 20), SMALL),
    Case(
        "expand_flatten",
        THEME,
        between(lambda x: x[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2), 9, 18),
        SMALL,
    ),
    Case("pad_channels", THEME, between(lambda x: F.pad(x, (0, 0, 0, 0, 2, 3), value=0.7), 12, 17), SMALL),
    Case("pad_negative", THEME, between(lambda x: F.pad(x, (0, 0, 0, 0, -2, -1)), 15, 12), SMALL),
    Case("masked_by_constant", THEME, MaskedByConstant, SMALL),
    Case("expanded_context", THEME, Expanded, SMALL),
    Case("shifted_channels", THEME, Shifted, SMALL),
)
