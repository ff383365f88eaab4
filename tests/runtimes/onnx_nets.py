"""Tiny networks of every kind, captured once per session, for the tests of what reads ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from karui import runtimes
from karui.artifact import Signature
from karui.graph.call import run_all, signature_of
from karui.graph.capture import capture
from karui.numerics import Numerics, parse_numerics
from karui.recipe import parse_named

ROWS = 100
NAMES = ("cnn", "mlp", "lstm", "encoder", "dict")


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(64, 10)

    def forward(self, image):
        image = self.pool(torch.relu(self.bn1(self.conv1(image))))
        return self.head(self.pool(torch.relu(self.bn2(self.conv2(image)))).flatten(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        seen = torch.relu(self.norm(self.stem(image)))
        return self.head(torch.relu(self.two(torch.relu(self.one(seen))) + seen).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.deep = (
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
        )
        self.point, self.head = nn.Conv2d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, image):
        seen = nn.functional.hardswish(self.stem(image))
        seen = nn.functional.relu6(self.point(nn.functional.relu6(self.deep(seen))))
        return self.head(nn.functional.adaptive_avg_pool2d(seen, 1).flatten(1))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.body(x))


class Recurrent(nn.Module):
    def __init__(self, cell=nn.LSTM):
        super().__init__()
        self.rnn, self.head = cell(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.pos = nn.Embedding(20, 16), nn.Parameter(torch.randn(1, 6, 16) / 10)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens):
        return self.head(self.layer(self.emb(tokens) + self.pos).mean(1))


class DictInDictOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, batch):
        hidden = torch.relu(self.a(batch["left"]) + self.b(batch["right"]))
        return {"scores": self.head(hidden), "hidden": hidden}


class Tied(nn.Module):
    """One weight for the embedding and the head, one for two layers in between."""

    def __init__(self):
        super().__init__()
        self.emb, self.one, self.two = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.two.weight, self.head.weight = self.one.weight, self.emb.weight

    def forward(self, tokens):
        return self.head(self.two(self.one(self.emb(tokens).mean(1)).relu()).relu())


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.two(self.one(x).relu().reshape(4, 8))


class SameNames(nn.Module):
    """An input that is also an output, an unused input, outputs of several dtypes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, unused):
        scores = self.layer(x)
        return {"x": x, "scores": scores, "label": scores.argmax(1), "positive": scores > 0}


@dataclass(frozen=True)
class Net:
    """A captured network: ``inputs`` and the eager ``outputs`` of ROWS samples."""

    folder: Path
    signature: Signature
    inputs: dict
    outputs: list

    def source(self, numerics: Numerics, calibrate: int = ROWS) -> runtimes.Source:
        some = {name: array[:calibrate] for name, array in self.inputs.items()}
        return runtimes.Source(self.folder, self.signature, numerics, some, self.inputs)


def capture_net(name: str, folder: Path) -> Net:
    torch.manual_seed(0)
    tokens, numbers = (
        lambda top, n: torch.randint(0, top, (ROWS, n)),
        lambda *shape: torch.randn(ROWS, *shape),
    )
    model, example = {
        "cnn": lambda: (Cnn(), numbers(1, 8, 8)),
        "residual": lambda: (Residual(), numbers(1, 8, 8)),
        "depthwise": lambda: (Depthwise(), numbers(1, 8, 8)),
        "mlp": lambda: (Mlp(), numbers(16)),
        "lstm": lambda: (Recurrent(), numbers(5, 8)),
        "encoder": lambda: (Encoder(), tokens(20, 6)),
        "dict": lambda: (DictInDictOut(), {"left": numbers(6), "right": numbers(4)}),
        "tied": lambda: (Tied(), tokens(9, 5)),
        "fixed": lambda: (FixedBatch(), numbers(4)),
        "same": lambda: (SameNames(), (numbers(4), numbers(3))),
    }[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    batch = 4 if name == "fixed" else 1
    model.eval()
    if isinstance(example, torch.Tensor):
        few = example[:batch]
    else:
        few = (
            {k: v[:batch] for k, v in example.items()}
            if isinstance(example, dict)
            else tuple(part[:batch] for part in example)
        )
    signature, one = signature_of(model, few, batch)
    parts = (
        [example]
        if isinstance(example, torch.Tensor)
        else list(example.values() if isinstance(example, dict) else example)
    )
    inputs = {key: part.numpy() for key, part in zip(one, parts, strict=True)}
    outputs = run_all(model, signature.style, inputs, 4 if name == "fixed" else 256)
    return Net(folder, capture(model, signature, one, folder), inputs, outputs)


class Bench:
    """Networks and builds of one session, each made once."""

    def __init__(self, factory) -> None:
        self.factory, self.nets, self.builds = factory, {}, {}

    def net(self, name: str) -> Net:
        if name not in self.nets:
            self.nets[name] = capture_net(name, self.factory.mktemp(name))
        return self.nets[name]

    def build(self, runtime: str, name: str, numerics: str = "fp32"):
        """What ``build`` said, and the folder it filled."""
        key = (runtime, name, numerics)
        if key not in self.builds:
            folder = self.factory.mktemp("built")
            built = runtimes.load(parse_named(runtime)).build(
                self.net(name).source(parse_numerics(numerics)), folder
            )
            self.builds[key] = (built, folder)
        return self.builds[key]

    def predict(self, runtime: str, name: str, numerics: str = "fp32", threads: int = 1):
        folder = self.build(runtime, name, numerics)[1]
        return runtimes.load(parse_named(runtime)).load(folder, self.net(name).signature, threads)


SHARED: list[Bench] = []


def shared(factory) -> Bench:
    """The session's Bench, whichever test module asks first."""
    if not SHARED:
        SHARED.append(Bench(factory))
    return SHARED[0]


def rows(arrays: dict, start: int, stop: int) -> dict:
    return {name: array[start:stop].copy() for name, array in arrays.items()}


def far(mine, theirs) -> float:
    """The largest difference over the largest value."""
    gap = np.abs(np.asarray(mine, np.float64) - np.asarray(theirs, np.float64)).max()
    return float(gap / max(np.abs(np.asarray(theirs, np.float64)).max(), 1e-9))


def cosine(mine, theirs) -> float:
    a, b = np.asarray(mine, np.float64).ravel(), np.asarray(theirs, np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
