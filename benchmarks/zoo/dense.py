"""Networks of Linear layers: classifiers, autoencoders, recommenders, metric learning."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import conv_bn_relu
from benchmarks.zoo.case import Case, both, normal, tokens
from torch import nn

THEME = "dense"


def mlp():
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5))


def self_normalising():
    return nn.Sequential(
        nn.Linear(10, 20),
        nn.SELU(),
        nn.AlphaDropout(0.1),
        nn.Linear(20, 12, bias=False),
        nn.CELU(),
        nn.Linear(12, 5),
    )


class ResidualMlp(nn.Module):
    def __init__(self, width=18):
        super().__init__()
        self.embed, self.head = nn.Linear(10, width), nn.Linear(width, 5)
        self.up = nn.ModuleList(nn.Linear(width, hidden) for hidden in (12, 24))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for hidden in (12, 24))

    def forward(self, x):
        x = self.embed(x)
        for up, down in zip(self.up, self.down):
            x = x + down(F.relu(up(x)))
        return self.head(F.relu(x))


class Variational(nn.Module):
    """Mean and log-variance are two heads; eval mode decodes the mean."""

    def __init__(self):
        super().__init__()
        self.fc1, self.mean, self.log_variance = nn.Linear(16, 20), nn.Linear(20, 8), nn.Linear(20, 8)
        self.fc2, self.fc3 = nn.Linear(8, 14), nn.Linear(14, 16)

    def forward(self, x):
        hidden = F.relu(self.fc1(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return torch.sigmoid(self.fc3(F.relu(self.fc2(z)))), mean, log_variance


class VectorQuantised(nn.Module):
    """The nearest code by distance: what is removed from the encoder goes from every code."""

    def __init__(self, codes=7, width=10):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, width))
        self.codes = nn.Embedding(codes, width)
        self.decoder = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 12))

    def forward(self, x):
        z = self.encoder(x)
        codes = self.codes.weight
        distance = z.pow(2).sum(-1, keepdim=True) + codes.pow(2).sum(1) - 2 * z @ codes.t()
        quantised = self.codes(distance.argmin(-1))
        return self.decoder(z + (quantised - z).detach())


class BilinearPair(nn.Module):
    """``nn.Bilinear`` of two hidden vectors."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 12), nn.Linear(6, 10)
        self.pair, self.head = nn.Bilinear(12, 10, 14), nn.Linear(14, 5)

    def forward(self, left, right):
        return self.head(F.relu(self.pair(F.relu(self.left(left)), torch.tanh(self.right(right)))))


class OuterProduct(nn.Module):
    """Bilinear pooling written out: every pair of two hidden vectors, then signed roots."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(8, 9), nn.Linear(6, 12), nn.Linear(108, 5)

    def forward(self, left, right):
        pairs = torch.bmm(self.left(left).unsqueeze(2), self.right(right).unsqueeze(1)).flatten(1)
        return self.head(torch.sign(pairs) * torch.sqrt(pairs.abs() + 1e-6))


class TwoTowers(nn.Module):
    """Both towers' last widths go together: the score is their dot product."""

    def __init__(self):
        super().__init__()
        self.user = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 12))
        self.item = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12))

    def forward(self, user, item):
        return (self.user(user) * self.item(item)).sum(-1)


class Contrastive(TwoTowers):
    """CLIP: all pairs of the batch, unit length, a learned temperature."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10)))

    def forward(self, user, item):
        user, item = F.normalize(self.user(user), dim=-1), F.normalize(self.item(item), dim=-1)
        return self.logit_scale.exp() * user @ item.t()


class CosineHead(nn.Module):
    """Features and class vectors of unit length."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_bn_relu(3, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 20)
        )
        self.weight = nn.Parameter(torch.randn(5, 20))

    def forward(self, x):
        return 8 * F.linear(F.normalize(self.features(x)), F.normalize(self.weight))


class Prototypes(nn.Module):
    """Distances to learned prototypes, with ``cdist`` and with ``cosine_similarity``."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 14))
        self.prototypes = nn.Parameter(torch.randn(5, 14))

    def forward(self, x):
        z = self.encoder(x)
        return F.cosine_similarity(z[:, None], self.prototypes, dim=-1) - torch.cdist(z, self.prototypes)


class RadialBasis(nn.Module):
    """Hidden units are Gaussians around centres."""

    def __init__(self, centres=16):
        super().__init__()
        self.embed, self.head = nn.Linear(10, 8), nn.Linear(centres, 5)
        self.centres, self.widths = nn.Parameter(torch.randn(centres, 8)), nn.Parameter(torch.ones(centres))

    def forward(self, x):
        distance = (self.embed(x).unsqueeze(1) - self.centres).pow(2).sum(-1)
        return self.head(torch.exp(-0.1 * self.widths * distance))


class FactorisationMachine(nn.Module):
    """Square of the sum minus sum of the squares, beside a deep part."""

    def __init__(self, width=10):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(30, width), nn.Embedding(30, 1)
        self.fc1, self.fc2 = nn.Linear(4 * width, 20), nn.Linear(20, 1)

    def forward(self, ids):
        x = self.embedding(ids)
        pairs = 0.5 * (x.sum(1).pow(2) - x.pow(2).sum(1)).sum(1, keepdim=True)
        deep = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return torch.sigmoid(0.1 * (self.linear(ids).sum(1) + pairs + deep))


class Interactions(nn.Module):
    """DLRM: dot products of all pairs of vectors, those above the diagonal kept."""

    def __init__(self, width=12):
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, width))
        self.tables = nn.ModuleList(nn.Embedding(20, width) for _ in range(3))
        self.top = nn.Sequential(nn.Linear(width + 6, 14), nn.ReLU(), nn.Linear(14, 1))

    def forward(self, dense, ids):
        x = self.dense(dense)
        vectors = torch.stack([x] + [table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        row, column = torch.triu_indices(4, 4, offset=1)
        return self.top(torch.cat([x, products[:, row, column]], 1))


class CrossNetwork(nn.Module):
    """DCN: the input is multiplied by a function of itself, over and over."""

    def __init__(self, width=14):
        super().__init__()
        self.embed, self.cross = nn.Linear(8, width), nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        start = x = self.embed(x)
        for cross in self.cross:
            x = start * cross(x) + x
        return self.head(x)


class FourierFeatures(nn.Module):
    """NeRF: sines and cosines of the input, appended again in the middle."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rates", 2.0 ** torch.arange(3))
        self.fc1, self.fc2, self.head = nn.Linear(18, 20), nn.Linear(20 + 18, 14), nn.Linear(14, 4)

    def forward(self, x):
        angles = (x[..., None] * self.rates).flatten(-2)
        encoded = torch.cat([torch.sin(angles), torch.cos(angles)], -1)
        x = F.relu(self.fc1(encoded))
        return self.head(F.relu(self.fc2(torch.cat([x, encoded], -1))))


class Decomposed(nn.Module):
    """A CP-decomposed layer: a product of three small factors by einsum."""

    def __init__(self, rank=9):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(size, rank)) for size in (6, 8, 14))
        self.head = nn.Linear(14, 5)

    def forward(self, x):
        return self.head(F.relu(torch.einsum("bij,ir,jr,kr->bk", x, self.a, self.b, self.c)))


ROW, PAIR = normal((10,)), normal((8,), (6,))
CASES = (
    Case("mlp", THEME, mlp, ROW),
    Case("self_normalising", THEME, self_normalising, ROW),
    Case("residual_mlp", THEME, ResidualMlp, ROW),
    Case("variational", THEME, Variational, normal((16,))),
    Case("vector_quantised", THEME, VectorQuantised, normal((5, 12))),
    Case("bilinear", THEME, BilinearPair, PAIR),
    Case("outer_product", THEME, OuterProduct, PAIR),
    Case("two_towers", THEME, TwoTowers, PAIR),
    Case("contrastive", THEME, Contrastive, PAIR),
    Case("cosine_head", THEME, CosineHead, normal((3, 8, 8))),
    Case("prototypes", THEME, Prototypes, ROW),
    Case("radial_basis", THEME, RadialBasis, ROW),
    Case("factorisation_machine", THEME, FactorisationMachine, tokens(30, 4)),
    Case("interactions", THEME, Interactions, both(normal((6,)), tokens(20, 3))),
    Case("cross_network", THEME, CrossNetwork, normal((8,))),
    Case("fourier_features", THEME, FourierFeatures, normal((3,))),
    Case("decomposed", THEME, Decomposed, normal((6, 8))),
)
