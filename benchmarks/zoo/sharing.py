"""Parameters used twice, computed, borrowed or frozen, and regions that autograd does not see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import classifier, conv_bn_relu
from benchmarks.zoo.case import Case, normal, tokens
from torch import nn
from torch.nn.utils import parametrizations, parametrize

THEME = "sharing"


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder transposed."""

    def __init__(self):
        super().__init__()
        self.encoder, self.hidden = nn.Linear(12, 20), nn.Linear(20, 20)
        self.bias = nn.Parameter(torch.zeros(12))

    def forward(self, x):
        x = F.relu(self.hidden(F.relu(self.encoder(x))))
        return F.linear(x, self.encoder.weight.t(), self.bias)


class TiedConvs(nn.Module):
    """Two modules, one weight, biases of their own."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = conv_bn_relu(3, 14), classifier(14)
        self.conv1, self.conv2 = nn.Conv2d(14, 14, 3, padding=1), nn.Conv2d(14, 14, 3, padding=1)
        self.conv2.weight = self.conv1.weight

    def forward(self, x):
        return self.head(F.relu(self.conv2(F.relu(self.conv1(self.stem(x))))))


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.fc1, self.fc2 = nn.Embedding(30, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.fc2(F.relu(self.fc1(self.embedding(ids)))))


class SharedByKinds(nn.Module):
    """One parameter as a Linear's weight and as a convolution's."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc, self.head = conv_bn_relu(3, 12), nn.Linear(12, 18, bias=False), nn.Linear(18, 5)

    def forward(self, x):
        x = self.stem(x)
        places = F.relu(F.conv2d(x, self.fc.weight[:, :, None, None])).mean((2, 3))
        return self.head(places + F.relu(self.fc(x.mean((2, 3)))))


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = conv_bn_relu(3, 14), conv_bn_relu(14, 14), classifier(14)

    def forward(self, x):
        return self.head(self.block(self.block(self.stem(x))))


class Recursive(nn.Module):
    """ALBERT: one block for all layers."""

    def __init__(self, width=14):
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(10, width), nn.Linear(width, 22), nn.Linear(22, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        for _ in range(3):
            x = x + 0.5 * self.down(torch.tanh(self.up(x)))
        return self.head(x)


class CalledOnDifferent(nn.Module):
    """One convolution over the features of two stems: both stems' widths go together."""

    def __init__(self):
        super().__init__()
        self.left, self.right = conv_bn_relu(3, 12), nn.Conv2d(2, 12, 5, padding=2)
        self.shared, self.head = conv_bn_relu(12, 18), nn.Linear(36, 5)

    def forward(self, left, right):
        left, right = self.shared(self.left(left)), self.shared(self.right(right))
        return self.head(torch.cat([left.mean((2, 3)), right.amax((2, 3))], 1))


class SharedHead(nn.Module):
    """One head after each of two stages."""

    def __init__(self):
        super().__init__()
        self.stage1, self.stage2, self.head = (
            conv_bn_relu(3, 16),
            conv_bn_relu(16, 16, stride=2),
            classifier(16),
        )

    def forward(self, x):
        x = self.stage1(x)
        return self.head(x), self.head(self.stage2(x))


class SharedNorm(nn.Module):
    """One batch norm for two branches."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv3 = nn.Conv2d(3, 14, 1, bias=False), nn.Conv2d(3, 14, 3, padding=1, bias=False)
        self.bn, self.head = nn.BatchNorm2d(14), classifier(28)

    def forward(self, x):
        return self.head(F.relu(torch.cat([self.bn(self.conv1(x)), self.bn(self.conv3(x))], 1)))


def parametrized(register):
    """Four layers, ``register`` applied to the inner two."""
    return nn.Sequential(
        nn.Linear(10, 16),
        nn.ReLU(),
        register(nn.Linear(16, 20)),
        nn.ReLU(),
        register(nn.Linear(20, 14)),
        nn.Tanh(),
        nn.Linear(14, 5),
    )


def orthogonal(layer):
    """Any weight is mapped to an orthogonal one; the default map would ask for a diagonal of -1 and 1."""
    return parametrizations.orthogonal(layer, orthogonal_map="matrix_exp")


def weight_normed_convs():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 12, 3, padding=1)),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Conv2d(12, 18, 3, padding=1)),
        nn.ReLU(),
        classifier(18),
    )


class Masked(nn.Module):
    """A parametrization with a constant mask of the weight's own shape."""

    def __init__(self, rows, columns):
        super().__init__()
        self.register_buffer("mask", ((torch.arange(rows)[:, None] + torch.arange(columns)) % 3 > 0).float())

    def forward(self, weight):
        return weight * self.mask


def masked():
    layer = nn.Linear(16, 20)
    parametrize.register_parametrization(layer, "weight", Masked(20, 16))
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), layer, nn.ReLU(), nn.Linear(20, 5))


@torch.no_grad()
def settled(model):
    """Power iterations until the norm estimate fits the weights drawn: they run in training mode only."""
    model.train()
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for _ in range(50):
                _ = module.weight


class LowRank(nn.Module):
    """LoRA: a frozen weight and a product of two small ones."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(10, 20), nn.Linear(20, 16), nn.Linear(16, 5)
        self.fc2.requires_grad_(False)
        self.lora_a, self.lora_b = nn.Parameter(torch.randn(4, 20)), nn.Parameter(torch.zeros(16, 4))

    def forward(self, x):
        x = F.relu(self.fc1(x))
        return self.head(F.relu(self.fc2(x) + 0.5 * (x @ self.lora_a.T @ self.lora_b.T)))


class Hypernetwork(nn.Module):
    """The weight of a layer is the output of another."""

    def __init__(self):
        super().__init__()
        self.embed, self.make, self.head = nn.Linear(10, 12), nn.Linear(4, 12 * 14), nn.Linear(14, 5)

    def forward(self, x, condition):
        weight = self.make(condition).view(-1, 14, 12)
        x = torch.bmm(weight, F.relu(self.embed(x)).unsqueeze(2)).squeeze(2)
        return self.head(F.relu(x))


class Functional(nn.Module):
    """Convolution and Linear with parameters of the module's own."""

    def __init__(self):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(12, 3, 3, 3)), nn.Parameter(torch.zeros(12))
        self.scale, self.matrix = nn.Parameter(torch.ones(12)), nn.Parameter(torch.randn(12, 20))
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.kernel * self.scale.view(-1, 1, 1, 1), self.bias, padding=1))
        return self.head(F.relu(x.mean((2, 3)) @ self.matrix))


class Sliced(nn.Module):
    """A slimmable layer: a literal part of a larger weight is used."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(10, 24), nn.Linear(24, 16), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(F.linear(x, self.fc1.weight[:18], self.fc1.bias[:18]))
        return self.head(F.relu(F.linear(x, self.fc2.weight[:12, :18], self.fc2.bias[:12])))


class Scales(nn.Module):
    """Loose parameters of several shapes on the way."""

    def __init__(self, width=14):
        super().__init__()
        self.stem, self.conv, self.head = (
            conv_bn_relu(3, width),
            nn.Conv2d(width, width, 3, padding=1),
            classifier(width),
        )
        self.alpha, self.beta = (
            nn.Parameter(torch.ones(1, width, 1, 1)),
            nn.Parameter(torch.ones(width, 1, 1)),
        )
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x):
        x = self.stem(x)
        return self.head(
            self.alpha * x + self.beta * F.relu(self.conv(x)) * self.gain.view(1, -1, 1, 1) + self.shift
        )


SMALL, ROW = normal((3, 8, 8)), normal((10,))
CASES = (
    Case("tied_autoencoder", THEME, TiedAutoencoder, normal((12,))),
    Case("tied_convs", THEME, TiedConvs, SMALL),
    Case("tied_embedding", THEME, TiedEmbedding, tokens(30, 7)),
    Case("shared_by_kinds", THEME, SharedByKinds, SMALL),
    Case("called_twice", THEME, CalledTwice, SMALL),
    Case("recursive", THEME, Recursive, ROW),
    Case("called_on_different", THEME, CalledOnDifferent, normal((3, 8, 8), (2, 8, 8))),
    Case("shared_head", THEME, SharedHead, SMALL),
    Case("shared_norm", THEME, SharedNorm, SMALL),
    Case("weight_norm", THEME, lambda: parametrized(parametrizations.weight_norm), ROW),
    Case("weight_norm_convs", THEME, weight_normed_convs, SMALL),
    Case(
        "weight_norm_other_axis",
        THEME,
        lambda: parametrized(lambda m: parametrizations.weight_norm(m, dim=1)),
        ROW,
    ),
    Case("spectral_norm", THEME, lambda: parametrized(parametrizations.spectral_norm), ROW, prepare=settled),
    Case("orthogonal", THEME, lambda: parametrized(orthogonal), ROW, exact=False),
    Case("masked_parametrization", THEME, masked, ROW),
    Case("low_rank", THEME, LowRank, ROW),
    Case("hypernetwork", THEME, Hypernetwork, normal((10,), (4,))),
    Case("functional", THEME, Functional, SMALL),
    Case("sliced_weight", THEME, Sliced, ROW),
    Case("scale_parameters", THEME, Scales, SMALL),
)
