"""Views, permutations and patches, with and without literal sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal
from torch import nn

THEME = "reshaping"


class LiteralView(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = conv_bn_relu(3, 20), nn.Linear(20 * 16, 5)
        self.mix = nn.Conv1d(20, 20, 1)

    def forward(self, x):
        x = F.max_pool2d(self.conv(x), 2)
        x = torch.relu(self.mix(x.view(-1, 20, 16)))
        return self.head(x.view(-1, 20 * 16))


class AttributeView(nn.Module):
    def __init__(self, channels=20):
        super().__init__()
        self.channels = channels
        self.conv, self.mix = conv_bn_relu(3, channels), nn.Linear(64, 10)
        self.head = nn.Linear(channels * 10, 5)

    def forward(self, x):
        x = self.mix(self.conv(x).reshape(x.size(0), self.channels, -1))
        return self.head(F.relu(x).reshape(-1, self.channels * 10))


class ConcatFlatten(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = conv_bn_relu(3, 12), conv_bn_relu(3, 20, stride=2)
        self.fc1, self.fc2 = nn.Linear(12 * 16 + 20 * 16, 24), nn.Linear(24, 5)

    def forward(self, x):
        left, right = F.avg_pool2d(self.left(x), 2), self.right(x)
        x = torch.flatten(torch.cat([left, right], 1), 1)
        return self.fc2(F.relu(self.fc1(x)))


class FlattenConcat(ConcatFlatten):
    def forward(self, x):
        left, right = F.avg_pool2d(self.left(x), 2), self.right(x)
        x = torch.cat([right.flatten(1), left.flatten(1)], 1)
        return self.fc2(F.relu(self.fc1(x)))


class ChannelsLast(nn.Module):
    """A Linear per pixel between two convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv_bn_relu(3, 12), conv_bn_relu(20, 16)
        self.fc = nn.Linear(12, 20)
        self.head = classifier(16)

    def forward(self, x):
        x = self.conv1(x).permute(0, 2, 3, 1)
        return self.head(self.conv2(F.relu(self.fc(x)).permute(0, 3, 1, 2)))


class ChannelsLastFlatten(nn.Module):
    """TensorFlow's order of flattening: channels run fastest."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = conv_bn_relu(3, 12), nn.Linear(12 * 16, 20), nn.Linear(20, 5)

    def forward(self, x):
        x = F.max_pool2d(self.conv(x), 2).permute(0, 2, 3, 1).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


class TokensAndBack(nn.Module):
    """(B, C, H, W) to tokens, a Linear, and back to an image of literal size."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Conv2d(3, 20, 2, 2), nn.Linear(20, 28), nn.Linear(28, 12)
        self.conv, self.head = nn.Conv2d(12, 16, 3, padding=1), classifier(16)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = self.fc2(F.gelu(self.fc1(x)))
        x = x.permute(0, 2, 1).reshape(-1, 12, 4, 4)
        return self.head(F.relu(self.conv(x)))


class PatchMerging(nn.Module):
    """Swin: the four pixels of a square side by side, channels last."""

    def __init__(self):
        super().__init__()
        self.embed, self.reduce = nn.Conv2d(3, 12, 2, 2), nn.Linear(4 * 12, 20, bias=False)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = F.gelu(self.embed(x)).permute(0, 2, 3, 1)
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        x = F.gelu(self.reduce(torch.cat(corners, -1)))
        return self.head(x.mean((1, 2)))


class Focus(nn.Module):
    """YOLOv5: the four pixels of a square as channels, here of a feature map."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 10), conv_bn_relu(40, 16), classifier(16)

    def forward(self, x):
        x = self.stem(x)
        return self.head(
            self.conv(
                torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
            )
        )


def pixel_shuffle():
    return nn.Sequential(
        conv_bn_relu(3, 12),
        nn.Conv2d(12, 5 * 4, 3, padding=1),
        nn.PixelShuffle(2),
        nn.ReLU(),
        nn.Conv2d(5, 3, 1),
    )


def pixel_unshuffle():
    return nn.Sequential(conv_bn_relu(3, 10), nn.PixelUnshuffle(2), conv_bn_relu(40, 16, 1), classifier(16))


class SpaceToDepth(nn.Module):
    """Written out by hand, with its sizes read from the shape."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 10), conv_bn_relu(40, 16, 1), classifier(16)

    def forward(self, x):
        x = self.stem(x)
        rows, channels, height, width = x.shape
        x = x.view(rows, channels, height // 2, 2, width // 2, 2)
        x = x.permute(0, 3, 5, 1, 2, 4).contiguous()
        return self.head(self.conv(x.view(rows, channels * 4, height // 2, width // 2)))


class Unfold(nn.Module):
    """im2col of a feature map, then a Linear: a convolution in two steps."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.head = conv_bn_relu(3, 10), nn.Linear(10 * 9, 20), nn.Linear(20, 5)

    def forward(self, x):
        columns = F.unfold(self.conv(x), kernel_size=3, padding=1)
        return self.head(F.relu(self.fc(columns.transpose(1, 2))).mean(1))


class FoldBack(nn.Module):
    """Overlapping patches are changed and summed back into an image."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = conv_bn_relu(3, 8), nn.Linear(8 * 4, 6 * 4)
        self.out = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        patches = F.unfold(self.conv(x), kernel_size=2, stride=2).transpose(1, 2)
        patches = F.relu(self.fc(patches)).transpose(1, 2)
        return self.out(F.fold(patches, output_size=(8, 8), kernel_size=2, stride=2))


class TensorUnfold(nn.Module):
    """Patches cut with ``Tensor.unfold``, flattened with their channels."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.head = conv_bn_relu(3, 10), nn.Linear(10 * 16, 24), nn.Linear(24, 5)

    def forward(self, x):
        patches = self.conv(x).unfold(2, 4, 4).unfold(3, 4, 4)  # (B, C, 2, 2, 4, 4)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
        return self.head(F.relu(self.fc(patches)).mean((1, 2)))


class LinearToImage(nn.Module):
    """A generator: Linear, view with literal sizes, transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 20 * 4 * 4)
        self.up1, self.up2 = nn.ConvTranspose2d(20, 12, 2, 2), nn.ConvTranspose2d(12, 3, 2, 2)

    def forward(self, z):
        x = F.relu(self.fc(z)).view(-1, 20, 4, 4)
        return torch.tanh(self.up2(F.relu(self.up1(x))))


class UnflattenToImage(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(12, 10 * 9),
            nn.Unflatten(1, (10, 3, 3)),
            nn.BatchNorm2d(10),
            nn.ReLU(),
            nn.ConvTranspose2d(10, 14, 3, 2),
            nn.ReLU(),
            nn.Conv2d(14, 3, 3, padding=1),
        )

    def forward(self, z):
        return self.body(z)


class Einsum(nn.Module):
    """A per-pixel product over channels with the module's own weight."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = conv_bn_relu(3, 12), classifier(20)
        self.weight = nn.Parameter(torch.randn(20, 12))

    def forward(self, x):
        return self.head(F.relu(torch.einsum("bchw,oc->bohw", self.conv(x), self.weight)))


class Gram(nn.Module):
    """Every pair of channels becomes a feature."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = conv_bn_relu(3, 10), nn.Linear(100, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.conv(x).flatten(2)
        gram = torch.bmm(x, x.transpose(1, 2)) / x.shape[2]
        return self.fc2(F.relu(self.fc1(gram.flatten(1))))


class CoordConv(nn.Module):
    """Two channels of coordinates are appended to the features."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 12), conv_bn_relu(14, 18), classifier(18)

    def forward(self, x):
        x = self.stem(x)
        places = torch.linspace(-1, 1, 8, device=x.device)
        grid = torch.stack(torch.meshgrid(places, places, indexing="ij"))
        return self.head(self.conv(torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], 1)))


class Windows(nn.Module):
    """Window partition and its inverse, as in window attention, around a Linear."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.out = nn.Conv2d(3, 10, 1), nn.Linear(10 * 16, 18 * 16), nn.Conv2d(18, 3, 1)

    def forward(self, x):
        x = F.relu(self.embed(x)).reshape(-1, 10, 2, 4, 2, 4)
        windows = torch.einsum("bchiwj->bhwcij", x).reshape(-1, 10 * 16)
        x = F.relu(self.fc(windows)).reshape(-1, 2, 2, 18, 4, 4)
        return self.out(x.permute(0, 3, 1, 4, 2, 5).reshape(-1, 18, 8, 8))


class Squeezed(nn.Module):
    """Axes of size one come and go."""

    def __init__(self):
        super().__init__()
        self.conv, self.temporal = nn.Conv2d(1, 12, (6, 3), padding=(0, 1)), nn.Conv1d(12, 20, 3, padding=1)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(self.conv(x.unsqueeze(1))).squeeze(2)
        return self.head(torch.amax(F.relu(self.temporal(x)), dim=-1))


SMALL = normal((3, 8, 8))
CASES = (
    Case("literal_view", THEME, LiteralView, SMALL),
    Case("attribute_view", THEME, AttributeView, SMALL),
    Case("concat_flatten", THEME, ConcatFlatten, SMALL),
    Case("flatten_concat", THEME, FlattenConcat, SMALL),
    Case("channels_last", THEME, ChannelsLast, SMALL),
    Case("channels_last_flatten", THEME, ChannelsLastFlatten, SMALL),
    Case("tokens_and_back", THEME, TokensAndBack, SMALL),
    Case("patch_merging", THEME, PatchMerging, SMALL),
    Case("focus", THEME, Focus, SMALL),
    Case("pixel_shuffle", THEME, pixel_shuffle, SMALL),
    Case("pixel_unshuffle", THEME, pixel_unshuffle, SMALL),
    Case("space_to_depth", THEME, SpaceToDepth, SMALL),
    Case("unfold", THEME, Unfold, SMALL),
    Case("fold_back", THEME, FoldBack, SMALL),
    Case("tensor_unfold", THEME, TensorUnfold, SMALL),
    Case("linear_to_image", THEME, LinearToImage, normal((12,))),
    Case("unflatten_to_image", THEME, UnflattenToImage, normal((12,))),
    Case("einsum", THEME, Einsum, SMALL),
    Case("gram", THEME, Gram, SMALL),
    Case("coord_conv", THEME, CoordConv, SMALL),
    Case("windows", THEME, Windows, SMALL),
    Case("squeezed", THEME, Squeezed, normal((6, 10))),
)
