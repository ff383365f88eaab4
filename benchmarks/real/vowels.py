"""JapaneseVowels: who of nine speakers said /ae/, by an LSTM over 25 frames of 12 coefficients.

    karui optimize benchmarks.real.vowels:task --max-drop 1

Kudo, Toyama & Shimbo 1999; the files of equal length come with the package ``aeon``. Its 640 series are few:
training takes half of them, and the answers of the trained network are what is compared (agreement).
"""

from __future__ import annotations

from pathlib import Path

import torch
from benchmarks.data import DataError
from benchmarks.networks.train import CHECKPOINTS, kept
from benchmarks.real.packages import folder_of
from torch import Tensor, nn
from torch.nn import functional

from karui.task import Task

SPEAKERS, COEFFICIENTS, FRAMES = 9, 12, 25
TRAIN, CALIBRATE, SELECT = 320, 128, 120
STEPS, BATCH, RATE = 400, 32, 1e-2
CHECKPOINT = CHECKPOINTS / "vowels.safetensors"


class Speaker(nn.Module):
    """(n, 25, 12) to scores of nine speakers: two LSTM layers, the mean of their states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(COEFFICIENTS, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, SPEAKERS)

    def forward(self, frames: Tensor) -> Tensor:
        states, _ = self.lstm(frames)
        return self.head(states.mean(1))


def task() -> Task:
    """Raises DataError when the package is not there."""
    folder = folder_of("aeon")
    parts = [read(folder / f"JapaneseVowels_eq_{name}.ts") for name in ("TRAIN", "TEST")]
    frames, speaker = (torch.cat(pair) for pair in zip(*parts))
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))
    frames, speaker = frames[order], speaker[order]
    return Task(
        model=network(frames[:TRAIN], speaker[:TRAIN]),
        inputs=frames[:8],
        train=(frames[:TRAIN], speaker[:TRAIN]),
        calibrate=frames[:CALIBRATE],
        select=(frames[TRAIN : TRAIN + SELECT], speaker[TRAIN : TRAIN + SELECT]),
        confirm=(frames[TRAIN + SELECT :], speaker[TRAIN + SELECT :]),
        score="top1",
        name="LSTM on JapaneseVowels",
    )


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Series (n, 25, 12) and speakers 0..8 of one file: a line a series, ``:`` between its dimensions."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next((i for i, line in enumerate(lines) if line.lower().startswith("@data")), None)
    if start is None:
        raise DataError(f"{path} is not a file of time series")
    rows = [line.split(":") for line in lines[start + 1 :] if line.strip()]
    series = torch.tensor([[[float(x) for x in one.split(",")] for one in row[:-1]] for row in rows])
    return series.transpose(1, 2).contiguous(), torch.tensor([int(row[-1]) - 1 for row in rows])


def network(frames: Tensor, speaker: Tensor) -> Speaker:
    """The trained network; it is trained once, in seconds, and kept."""
    torch.manual_seed(0)
    model = Speaker()
    kept(model, CHECKPOINT, lambda: fit(model, frames, speaker))
    return model.eval()


def fit(model: Speaker, frames: Tensor, speaker: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(frames), (BATCH,))
        optimizer.zero_grad()
        functional.cross_entropy(model(frames[rows]), speaker[rows]).backward()
        optimizer.step()
        schedule.step()
