"""Who speaks: a released voice encoder, judged by how often it takes two speakers for one.

    karui optimize benchmarks.real.voices:task --max-drop 1

The encoder of the package ``Resemblyzer`` (Wan et al. 2018, arXiv:1710.10467: three LSTM layers over mel
spectra), with its released weights, and the spoken letters of Debian's ``klettres-data``: one speaker a
language. An utterance is a few letters in a row; its voice is the mean of two windows of 1.6 seconds. The
score is 1 - EER, the equal error rate of all pairs of utterances. Needs ``soundfile`` and ``scipy``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import gcd
from pathlib import Path

import numpy as np
import torch
from benchmarks.real.packages import folder_of
from torch import Tensor, nn

from karui.score import Score
from karui.task import Task

RATE, HOP, WINDOW, MELS = 16_000, 160, 400, 40  # Hz; samples; samples; bands
FRAMES, WINDOWS = 160, 2  # of a window of the encoder; of an utterance
GAP = 800  # samples of silence between letters
LOUDNESS_DB, SILENT, STEP = -30.0, 0.05, 480  # at least; of the loudest step; samples
EVERY = 5  # an utterance of so many calibrates
MOST = 1000  # utterances of a speaker

Array = np.ndarray


class VoiceEncoder(nn.Module):
    """(n, 160, 40) to voices (n, 256) of length one."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        voice = torch.relu(self.linear(hidden[-1]))
        return voice / voice.norm(dim=1, keepdim=True)


def task() -> Task:
    """Raises DataError when a package is not there."""
    sounds, numbers = utterances("alpha")
    drawn = torch.arange(len(sounds)) // WINDOWS % EVERY == 0  # some of each speaker
    calibrate = sounds[drawn]
    return Task(
        model=network(),
        inputs=sounds[:8],
        calibrate=[calibrate[torch.randperm(len(calibrate), generator=torch.Generator().manual_seed(0))]],
        select=(sounds[~drawn], numbers[~drawn]),
        confirm=utterances("syllab"),
        score=Score(verified, "1 - EER", share=True),
        name="voice encoder on spoken letters",
    )


def network() -> VoiceEncoder:
    """With the released weights; nothing is unpickled but tensors."""
    stored = torch.load(folder_of("Resemblyzer") / "pretrained.pt", map_location="cpu", weights_only=True)
    model = VoiceEncoder()
    left = model.load_state_dict(stored["model_state"], strict=False)
    assert set(left.unexpected_keys) == {"similarity_weight", "similarity_bias"} and not left.missing_keys
    return model.eval()


def verified(voices: Array, utterances: Array) -> Array:
    """1 - EER over all pairs of utterances, whose voice is the mean of their rows."""
    numbers, at = np.unique(utterances, return_inverse=True)
    mean = np.zeros((len(numbers), voices.shape[1]), np.float64)
    np.add.at(mean, at, voices)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    first, second = np.triu_indices(len(mean), 1)
    alike, who = (mean @ mean.T)[first, second], numbers // MOST
    same = who[first] == who[second]
    own, other = np.sort(alike[same]), np.sort(alike[~same])
    at = np.sort(alike)
    missed = np.searchsorted(own, at) / len(own)
    taken = 1 - np.searchsorted(other, at) / len(other)
    best = np.abs(missed - taken).argmin()
    return np.asarray(1 - (missed[best] + taken[best]) / 2)


def utterances(kind: str) -> tuple[Tensor, Tensor]:
    """Mel spectra (n, 160, 40), and of which utterance: of the speaker i, from ``i * MOST`` on."""
    spectra, numbers = [], []
    length = WINDOWS * FRAMES * HOP
    for number, sound in enumerate(speeches(kind)):
        for i, start in enumerate(range(0, len(sound) - length + 1, length)):
            spectra.append(
                mel(sound[start : start + length])[: WINDOWS * FRAMES].reshape(WINDOWS, FRAMES, MELS)
            )
            numbers += [number * MOST + i] * WINDOWS
    return torch.cat(spectra), torch.tensor(numbers)


def speeches(kind: str) -> Iterator[Array]:
    """All that one speaker says, letter after letter."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder_of("klettres-data").glob(f"*-{kind}-*.ogg")):
        found[path.name.partition("-")[0]].append(path)
    for paths in found.values():
        yield np.concatenate([np.pad(heard(path), (0, GAP)) for path in paths])


def heard(path: Path) -> Array:
    """A file at ``RATE``, made louder where it is soft, without the silence around it."""
    import soundfile
    from scipy.signal import resample_poly

    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    common = gcd(rate, RATE)
    sound = resample_poly(sound.mean(1), RATE // common, rate // common).astype(np.float32)
    loudness = 20 * np.log10(np.sqrt(np.square(sound).mean()) + 1e-9)
    sound *= 10 ** (max(LOUDNESS_DB - loudness, 0.0) / 20)
    steps = sound[: len(sound) // STEP * STEP].reshape(-1, STEP)
    energy = np.sqrt(np.square(steps).mean(1))
    (loud,) = np.nonzero(energy > SILENT * energy.max())
    return steps[loud[0] : loud[-1] + 1].reshape(-1)


def mel(sound: Array) -> Tensor:
    """Power in ``MELS`` bands, (frames, bands): those of Slaney's Auditory Toolbox, each of area one."""
    wave = torch.stft(
        torch.from_numpy(sound), WINDOW, HOP, window=torch.hann_window(WINDOW), pad_mode="constant",
        return_complex=True,
    )  # fmt: skip
    return (bands() @ wave.abs().square()).T


def bands() -> Tensor:
    """(bands, frequencies): triangles, evenly spaced up to 1 kHz and by ratios from there on."""
    step, ratio = 200 / 3, np.log(6.4) / 27
    top = 15 + np.log(RATE / 2 / 1000) / ratio
    marks = np.linspace(0, top, MELS + 2)
    ends = np.where(marks < 15, marks * step, 1000 * np.exp(ratio * (marks - 15)))
    at = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    up = (at - ends[:-2, None]) / np.diff(ends)[:-1, None]
    down = (ends[2:, None] - at) / np.diff(ends)[1:, None]
    return torch.from_numpy(
        np.maximum(0, np.minimum(up, down)) * (2 / (ends[2:] - ends[:-2]))[:, None]
    ).float()
