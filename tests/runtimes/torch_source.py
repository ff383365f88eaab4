"""What the tests of the torch runtimes build from: a small model captured into a folder."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from karui.graph.call import run_all, signature_of
from karui.graph.capture import capture
from karui.numerics import parse_numerics
from karui.runtimes import Source

INT8_CPU = ("avx2", "avx512f", "avx512_vnni")
ROWS = 64


class Faulty(nn.Module):
    """Both patterns that the INT8 lowering gets wrong: an image of one channel, a layer plus a weight.

    (n, 1, 8, 8) -> (n, 4)
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(512, 64)
        self.place, self.head = nn.Parameter(torch.randn(1, 64)), nn.Linear(64, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.conv(image)).flatten(1)
        return self.head(torch.tanh(self.inner(seen) + self.place))


class Residual(nn.Module):
    """What convolution networks are made of: (n, 1, 8, 8) -> (n, 4)"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.deep = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.norm(self.stem(image)))
        seen = nn.functional.max_pool2d(torch.relu(self.inner(seen) + seen), 2)
        return self.head(nn.functional.hardswish(self.deep(seen)).flatten(1))


class Recurrent(nn.Module):
    """(n, 1, 5, 6) -> (n, 3), row by row"""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(image.squeeze(1))[0][:, -1])


def residual(rows: np.ndarray) -> nn.Module:
    """With the statistics of ``rows``; of one channel there is nothing left but its bias."""
    torch.manual_seed(0)
    model = Residual()
    model(torch.tensor(rows))
    with torch.no_grad():
        model.inner.weight[2] = 0
        model.inner.bias[2] = 0.7
    return model.eval()


def source_of(model: nn.Module, rows: np.ndarray, folder: Path, numerics: str = "fp32") -> Source:
    """``model`` captured in the precision that the torch runtimes want for ``numerics``."""
    signature, arrays = signature_of(model, torch.tensor(rows), 1)
    wanted = parse_numerics(numerics)
    signature = capture(copy.deepcopy(model), signature, arrays, folder, wanted.default)
    return Source(folder, signature, wanted, calibrate=arrays, probe=arrays)


def images(channels: int = 1, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, channels, side, side), dtype=np.float32)


def answers_of(model: nn.Module, source: Source) -> np.ndarray:
    return run_all(model, source.signature.style, dict(source.probe))[0]


def rows_of(source: Source, count: int) -> dict[str, np.ndarray]:
    return {name: array[:count] for name, array in source.probe.items()}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one.ravel() @ other.ravel() / np.linalg.norm(one) / np.linalg.norm(other))
