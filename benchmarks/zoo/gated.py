"""Features that multiply, gate or choose among features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, both, normal
from torch import nn

THEME = "gated"


class GluLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(10, 2 * 14), nn.Linear(14, 2 * 9), nn.Linear(9, 5)

    def forward(self, x):
        return self.head(F.glu(self.fc2(F.glu(self.fc1(x)))))


def glu_conv():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.GLU(dim=1),
        nn.Conv2d(12, 32, 3, padding=1),
        nn.GLU(dim=1),
        classifier(16),
    )


class SwiGlu(nn.Module):
    def __init__(self, width=12, hidden=20):
        super().__init__()
        self.embed, self.head = nn.Linear(8, width), nn.Linear(width, 5)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


class GeGlu(nn.Module):
    """Gate and value out of one layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down, self.head = (
            nn.Linear(8, 12),
            nn.Linear(12, 40),
            nn.Linear(20, 12),
            nn.Linear(12, 5),
        )

    def forward(self, x):
        x = self.embed(x)
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.head(x + self.down(value * F.gelu(gate)))


class SeConv(nn.Module):
    def __init__(self, width, hidden, gate=torch.sigmoid):
        super().__init__()
        self.reduce, self.expand, self.gate = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1), gate

    def forward(self, x):
        return x * self.gate(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class SeLinear(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Sigmoid())

    def forward(self, x):
        rows, channels, _, _ = x.size()
        scale = self.fc(x.mean(dim=(2, 3))).view(rows, channels, 1, 1)
        return x * scale.expand_as(x)


class Cbam(nn.Module):
    """Gates over channels and over places; these from mean and maximum over channels after a ReLU."""

    def __init__(self, width, hidden):
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        x = x * torch.sigmoid(
            self.shared(F.adaptive_avg_pool2d(x, 1)) + self.shared(F.adaptive_max_pool2d(x, 1))
        )
        places = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * torch.sigmoid(self.spatial(places))


class ScSe(nn.Module):
    """Channel and spatial squeeze, the stronger of the two."""

    def __init__(self, width):
        super().__init__()
        self.channel, self.spatial = SeConv(width, 6), nn.Conv2d(width, 1, 1)

    def forward(self, x):
        return torch.maximum(self.channel(x), x * torch.sigmoid(self.spatial(x)))


class CoordinateAttention(nn.Module):
    """Pooled along each side, joined along places, split again by a size read from the shape."""

    def __init__(self, width, hidden):
        super().__init__()
        self.reduce = conv_bn_relu(width, hidden, 1)
        self.down, self.across = nn.Conv2d(hidden, width, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        height, width = x.shape[2:]
        pooled = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], dim=2)
        down, across = torch.split(self.reduce(pooled), [height, width], dim=2)
        return x * torch.sigmoid(self.down(down)) * torch.sigmoid(self.across(across.transpose(2, 3)))


class GlobalContext(nn.Module):
    """One softmax over places, its weighted sum added back through a bottleneck."""

    def __init__(self, width, hidden):
        super().__init__()
        self.score = nn.Conv2d(width, 1, 1)
        self.transform = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1))

    def forward(self, x):
        share = F.softmax(self.score(x).flatten(2), dim=-1)
        context = torch.matmul(x.flatten(2), share.transpose(1, 2)).unsqueeze(-1)
        return x + self.transform(context)


class SelectiveKernel(nn.Module):
    """SKNet: per channel, a softmax over the branches."""

    def __init__(self, width, hidden):
        super().__init__()
        self.branches = nn.ModuleList([conv_bn_relu(width, width, 3), conv_bn_relu(width, width, 5)])
        self.squeeze = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.scores = nn.ModuleList(nn.Linear(hidden, width) for _ in range(2))

    def forward(self, x):
        features = torch.stack([branch(x) for branch in self.branches], dim=1)
        squeezed = self.squeeze(features.sum(1).mean((2, 3)))
        share = torch.softmax(torch.stack([score(squeezed) for score in self.scores], dim=1), dim=1)
        return (features * share[..., None, None]).sum(1)


class SplitAttention(nn.Module):
    """ResNeSt: both branches out of one grouped convolution, their shares out of one layer."""

    def __init__(self, width, hidden, radix=2):
        super().__init__()
        self.width, self.radix = width, radix
        self.conv = conv_bn_relu(width, width * radix, groups=radix)
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width * radix, 1)

    def forward(self, x):
        x = self.conv(x)
        parts = x.view(x.shape[0], self.radix, self.width, *x.shape[2:])
        share = self.fc2(F.relu(self.fc1(parts.sum(1).mean((2, 3), keepdim=True))))
        share = share.view(-1, self.radix, self.width, 1, 1).softmax(1)
        return (parts * share).sum(1)


class Maxout(nn.Module):
    """The largest of three pieces per unit."""

    def __init__(self, pieces=3):
        super().__init__()
        self.pieces = pieces
        self.fc1, self.fc2, self.head = nn.Linear(10, 14 * pieces), nn.Linear(14, 9 * pieces), nn.Linear(9, 5)

    def forward(self, x):
        for layer in (self.fc1, self.fc2):
            x = layer(x).view(x.shape[0], -1, self.pieces).max(dim=2).values
        return self.head(x)


class MaxFeatureMap(nn.Module):
    """LightCNN: the larger of two halves."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(12, 32, 3), classifier(16)

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            left, right = torch.split(conv(x), conv.out_channels // 2, dim=1)
            x = torch.max(left, right)
        return self.head(x)


class Film(nn.Module):
    """A condition scales and shifts the features, channel by channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 14), conv_bn_relu(14, 18), classifier(18)
        self.condition = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 28))

    def forward(self, x, condition):
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
        return self.head(self.conv(self.stem(x) * (1 + scale) + shift))


class Highway(nn.Module):
    def __init__(self, width=14):
        super().__init__()
        self.embed, self.head = nn.Linear(10, width), nn.Linear(width, 5)
        self.transform, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        x = self.embed(x)
        gate = torch.sigmoid(self.gate(x))
        return self.head(gate * F.relu(self.transform(x)) + (1 - gate) * x)


class SimpleGate(nn.Module):
    """NAFNet: a product of halves and a gate without activation, between depthwise and 1x1 convolutions."""

    def __init__(self, width=12):
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.expand, self.project = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1))
        self.beta = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x):
        stem = self.stem(x)
        one, two = self.depthwise(self.expand(stem)).chunk(2, dim=1)
        gated = one * two
        return x + self.out(stem + self.project(gated * self.gate(gated)) * self.beta)


class SoftExperts(nn.Module):
    """A mixture whose gate weighs all experts."""

    def __init__(self, experts=3):
        super().__init__()
        self.gate, self.embed = nn.Linear(10, experts), nn.Linear(10, 12)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 14)) for width in (10, 16, 20)
        )
        self.head = nn.Linear(14, 5)

    def forward(self, x):
        share = F.softmax(self.gate(x), dim=-1)
        x = F.relu(self.embed(x))
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.head(F.relu(torch.einsum("be,beo->bo", share, outputs)))


class ConditionalConv(nn.Module):
    """CondConv: each sample has its own kernel, run as groups of one large batch."""

    def __init__(self, inputs=10, outputs=14, experts=3):
        super().__init__()
        self.stem, self.head = conv_bn_relu(3, inputs), classifier(outputs)
        self.route = nn.Linear(inputs, experts)
        self.weight = nn.Parameter(torch.randn(experts, outputs, inputs, 3, 3))

    def forward(self, x):
        x = self.stem(x)
        rows, channels, height, width = x.shape
        share = torch.sigmoid(self.route(x.mean((2, 3))))
        weight = torch.einsum("be,eoihw->boihw", share, self.weight).flatten(0, 1)
        x = F.conv2d(x.reshape(1, rows * channels, height, width), weight, padding=1, groups=rows)
        return self.head(F.relu(x.view(rows, -1, height, width)))


class SoftmaxOverChannels(nn.Module):
    """Every channel's share depends on all others."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 12, 3, padding=1), conv_bn_relu(12, 16), classifier(16)

    def forward(self, x):
        return self.head(self.conv(8 * F.softmax(self.stem(x), dim=1)))


class MeanOverChannels(nn.Module):
    """Exact once the mean of the channels left is scaled by left/all."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = conv_bn_relu(3, 12), conv_bn_relu(13, 16), classifier(16)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.conv(torch.cat([x, x.mean(dim=1, keepdim=True)], 1)))


class MaxOverChannels(nn.Module):
    """Without a ReLU before it, a removed zero may have been the maximum."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(64, 14)
        self.head = nn.Linear(14, 5)

    def forward(self, x):
        return self.head(F.relu(self.fc(self.stem(x).amax(dim=1).flatten(1))))


def within(block, width=20):
    return lambda: nn.Sequential(
        conv_bn_relu(3, width), block(width), conv_bn_relu(width, 12), classifier(12)
    )


SMALL, ROW = normal((3, 8, 8)), normal((10,))
CASES = (
    Case("glu_linear", THEME, GluLinear, ROW),
    Case("glu_conv", THEME, glu_conv, SMALL),
    Case("swiglu", THEME, SwiGlu, normal((8,))),
    Case("geglu_chunk", THEME, GeGlu, normal((6, 8))),
    Case("se_conv", THEME, within(lambda width: SeConv(width, 6)), SMALL),
    Case("se_hard_sigmoid", THEME, within(lambda width: SeConv(width, 8, F.hardsigmoid)), SMALL),
    Case("se_linear", THEME, within(lambda width: SeLinear(width, 5)), SMALL),
    Case("cbam", THEME, within(lambda width: Cbam(width, 6)), SMALL),
    Case("scse", THEME, within(ScSe), SMALL),
    Case("coordinate_attention", THEME, within(lambda width: CoordinateAttention(width, 8)), SMALL),
    Case("global_context", THEME, within(lambda width: GlobalContext(width, 8)), SMALL),
    Case("selective_kernel", THEME, within(lambda width: SelectiveKernel(width, 10), 12), SMALL),
    Case("split_attention", THEME, within(lambda width: SplitAttention(width, 8), 12), SMALL),
    Case("maxout", THEME, Maxout, ROW),
    Case("max_feature_map", THEME, MaxFeatureMap, SMALL),
    Case("film", THEME, Film, both(SMALL, normal((6,)))),
    Case("highway", THEME, Highway, ROW),
    Case("simple_gate", THEME, SimpleGate, SMALL),
    Case("soft_experts", THEME, SoftExperts, ROW),
    Case("conditional_conv", THEME, ConditionalConv, SMALL),
    Case("softmax_over_channels", THEME, SoftmaxOverChannels, SMALL, exact=False),
    Case("mean_over_channels", THEME, MeanOverChannels, SMALL),
    Case("max_over_channels", THEME, MaxOverChannels, SMALL, exact=False),
)
