"""Convolutions over time, embeddings in front of them, sets and graphs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.case import Case, both, normal, tokens
from torch import nn

THEME = "sequences"


class TextCnn(nn.Module):
    """Several window sizes over one embedding, the maximum over time of each."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 10)
        self.convs = nn.ModuleList(nn.Conv1d(10, width, size) for width, size in ((12, 2), (8, 3), (10, 4)))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(30, 5)

    def forward(self, ids):
        x = self.embedding(ids).transpose(1, 2)
        return self.head(self.dropout(torch.cat([F.relu(conv(x)).amax(2) for conv in self.convs], 1)))


class WordImage(nn.Module):
    """Kim's original: the sentence is an image of one channel, as wide as the embedding."""

    def __init__(self, width=10):
        super().__init__()
        self.embedding = nn.Embedding(30, width)
        self.convs = nn.ModuleList(nn.Conv2d(1, 9, (size, width)) for size in (2, 3))
        self.head = nn.Linear(18, 5)

    def forward(self, ids):
        x = self.embedding(ids).unsqueeze(1)
        x = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        return self.head(torch.cat([F.max_pool1d(y, y.size(2)).squeeze(2) for y in x], 1))


class CausalBlock(nn.Module):
    """TCN: padded on both sides, the right end cut off."""

    def __init__(self, inputs, outputs, dilation):
        super().__init__()
        self.padding = 2 * dilation
        self.conv = nn.Conv1d(inputs, outputs, 3, padding=self.padding, dilation=dilation)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x):
        y = F.relu(self.conv(x)[:, :, : -self.padding].contiguous())
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class WaveNet(nn.Module):
    """Gated units; skip outputs of all blocks are summed."""

    def __init__(self, width=12, skip=16):
        super().__init__()
        self.start = nn.Conv1d(4, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * 10, 2, dilation=d) for d in (1, 2))
        self.back = nn.ModuleList(nn.Conv1d(10, width, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(10, skip, 1) for _ in range(2))
        self.end = nn.Conv1d(skip, 4, 1)

    def forward(self, x):
        x, total = self.start(x), 0
        for gate, back, skip in zip(self.gates, self.back, self.skips):
            filtered, gated = gate(F.pad(x, (gate.dilation[0], 0))).chunk(2, 1)
            y = torch.tanh(filtered) * torch.sigmoid(gated)
            x, total = x + back(y), total + skip(y)
        return self.end(F.relu(total))


class Spectrogram(nn.Module):
    """Keyword spotting: frequency as channels, a depthwise-separable stack, statistics pooling."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 14, 3, padding=1)
        self.depthwise, self.point = nn.Conv1d(14, 14, 5, padding=2, groups=14), nn.Conv1d(14, 18, 1)
        self.head = nn.Linear(36, 5)

    def forward(self, x):
        x = F.relu(self.point(self.depthwise(F.relu(self.conv(x)))))
        return self.head(torch.cat([x.mean(-1), x.std(-1)], dim=1))


class PointNet(nn.Module):
    """A shared MLP per point, a learned 3x3 transform, the maximum over points beside each point."""

    def __init__(self):
        super().__init__()
        self.locate = nn.Sequential(nn.Conv1d(3, 10, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())
        self.transform = nn.Linear(10, 9)
        self.point, self.whole = nn.Conv1d(3, 12, 1), nn.Conv1d(12, 20, 1)
        self.segment, self.head = nn.Conv1d(12 + 20, 16, 1), nn.Conv1d(16, 4, 1)

    def forward(self, x):
        matrix = self.transform(self.locate(x)).view(-1, 3, 3) + torch.eye(3)
        x = F.relu(self.point(torch.bmm(matrix, x)))
        whole = self.whole(x).max(2, keepdim=True)[0].repeat(1, 1, x.size(2))
        return self.head(F.relu(self.segment(torch.cat([x, whole], 1))))


class DeepSets(nn.Module):
    def __init__(self):
        super().__init__()
        self.each = nn.Sequential(nn.Linear(5, 14), nn.ReLU(), nn.Linear(14, 18))
        self.all = nn.Sequential(nn.Linear(18, 12), nn.Tanh(), nn.Linear(12, 3))

    def forward(self, x):
        return self.all(self.each(x).sum(dim=1))


class GraphConv(nn.Module):
    """GCN over a dense adjacency matrix: messages are matmuls from the left."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.own = nn.Linear(5, 14), nn.Linear(14, 10, bias=False), nn.Linear(14, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x, adjacency):
        share = adjacency.softmax(-1)
        x = F.relu(share @ self.first(x))
        x = F.elu(share @ self.second(x) + self.own(x))
        return self.head(x.mean(1))


class GraphAttention(nn.Module):
    """GAT: the score of a pair is a sum of two scalars per head."""

    def __init__(self, heads=3, size=6):
        super().__init__()
        self.heads, self.fc = heads, nn.Linear(5, heads * size, bias=False)
        self.source, self.target = (
            nn.Parameter(torch.randn(heads, size)),
            nn.Parameter(torch.randn(heads, size)),
        )
        self.head = nn.Linear(heads * size, 3)

    def forward(self, x):
        x = self.fc(x).unflatten(-1, (self.heads, -1))
        source, target = (x * self.source).sum(-1), (x * self.target).sum(-1)
        share = F.leaky_relu(source[:, :, None] + target[:, None], 0.2).softmax(2)
        return self.head(F.elu(torch.einsum("bijh,bjhd->bihd", share, x)).flatten(2))


class EdgeConv(nn.Module):
    """DGCNN without the search: each point against every other, differences beside values."""

    def __init__(self):
        super().__init__()
        self.embed, self.edge, self.head = nn.Linear(4, 9), nn.Conv2d(18, 14, 1), nn.Linear(14, 3)

    def forward(self, x):
        x = F.relu(self.embed(x)).transpose(1, 2)
        centre = x.unsqueeze(3).expand(-1, -1, -1, x.shape[2])
        edges = torch.cat([centre, x.unsqueeze(2) - centre], dim=1)
        return self.head(F.leaky_relu(self.edge(edges)).max(dim=3).values.mean(2))


class StateSpace(nn.Module):
    """A diagonal linear recurrence per channel, unrolled, gated as in Mamba."""

    def __init__(self, width=12, inner=16):
        super().__init__()
        self.embed, self.into, self.out = (
            nn.Linear(6, width),
            nn.Linear(width, 2 * inner),
            nn.Linear(inner, width),
        )
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.decay, self.skip = nn.Parameter(torch.randn(inner)), nn.Parameter(torch.ones(inner))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        y, gate = self.into(x).chunk(2, dim=-1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., : y.shape[1]]).transpose(1, 2)
        state, outputs = torch.zeros_like(y[:, 0]), []
        for step in y.unbind(1):
            state = torch.sigmoid(self.decay) * state + step
            outputs.append(state + self.skip * step)
        return self.head(x + self.out(torch.stack(outputs, 1) * F.silu(gate)))


class CharsThenWords(nn.Module):
    """Characters of each word pooled into a vector beside the word's own."""

    def __init__(self):
        super().__init__()
        self.chars, self.words = nn.Embedding(20, 8), nn.Embedding(20, 10)
        self.conv, self.fc, self.head = nn.Conv1d(8, 12, 3, padding=1), nn.Linear(22, 16), nn.Linear(16, 4)

    def forward(self, words, chars):
        rows, length = words.shape
        x = self.chars(chars).view(rows * length, 4, 8).transpose(1, 2)
        x = self.conv(x).amax(-1).view(rows, length, -1)
        return self.head(torch.tanh(self.fc(torch.cat([self.words(words), x], dim=2))))


SIGNAL = normal((4, 12))
CASES = (
    Case("text_cnn", THEME, TextCnn, tokens(30, 10)),
    Case("word_image", THEME, WordImage, tokens(30, 8)),
    Case(
        "temporal_conv",
        THEME,
        lambda: nn.Sequential(
            CausalBlock(4, 12, 1), CausalBlock(12, 12, 2), CausalBlock(12, 18, 2), nn.Conv1d(18, 5, 1)
        ),
        SIGNAL,
    ),
    Case("wavenet", THEME, WaveNet, SIGNAL),
    Case("spectrogram", THEME, Spectrogram, normal((8, 12))),
    Case("pointnet", THEME, PointNet, normal((3, 10))),
    Case("deep_sets", THEME, DeepSets, normal((7, 5))),
    Case("graph_conv", THEME, GraphConv, normal((6, 5), (6, 6))),
    Case("graph_attention", THEME, GraphAttention, normal((6, 5))),
    Case("edge_conv", THEME, EdgeConv, normal((7, 4))),
    Case("state_space", THEME, StateSpace, normal((7, 6))),
    Case("chars_then_words", THEME, CharsThenWords, both(tokens(20, 5), tokens(20, 20))),
)
