"""Photo patches: from which of thirteen photographs 32 x 32 pixels were cut, by a depthwise CNN.

    karui optimize benchmarks.real.photos:task --max-drop 1

The photographs come with the packages ``scikit-image`` and ``scikit-learn``. Each is divided into cells of 96
pixels; patches to train on and patches to test on come from different cells. Needs the package ``pillow``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from benchmarks.networks.train import CHECKPOINTS, kept
from benchmarks.real.packages import folder_of
from torch import Tensor, nn
from torch.nn import functional

from karui.demo.networks import MobileNet
from karui.task import Task

CELL, SIDE = 96, 32
TRAIN, TEST = 13_000, 5_200  # patches, as many of each photograph
CALIBRATE, SELECT = 512, 2_600
EPOCHS, BATCH, RATE = 12, 128, 1e-2
CHECKPOINT = CHECKPOINTS / "photos.safetensors"


def task() -> Task:
    """Raises DataError when a package is not there."""
    paths = sorted(path for name in ("scikit-image", "scikit-learn") for path in folder_of(name).iterdir())
    photos = [read(path) for path in paths]
    train, test = cut(photos, TRAIN, held=False), cut(photos, TEST, held=True)
    split = (slice(SELECT), slice(SELECT, None))
    select, confirm = (tuple(part[rows] for part in test) for rows in split)
    return Task(
        model=network(*train, classes=len(paths)),
        inputs=train[0][:8],
        train=train,
        calibrate=train[0][:CALIBRATE],
        select=select,
        confirm=confirm,
        score="top1",
        name="depthwise CNN on photo patches",
        classes=tuple(path.stem for path in paths),
    )


def read(path: Path) -> Tensor:
    """A photograph as uint8 (3, height, width)."""
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def cut(photos: list[Tensor], count: int, *, held: bool) -> tuple[Tensor, Tensor]:
    """``count`` patches (n, 3, 32, 32) in [0, 1] and their photographs (n,), in random order.

    Every third cell is held out for the test.
    """
    draw = np.random.default_rng(int(held))
    patches, answers = [], []
    for label, photo in enumerate(photos):
        rows, columns = (length // CELL for length in photo.shape[1:])
        cells = [(i, j) for i in range(rows) for j in range(columns) if ((i + j) % 3 == 0) == held]
        for i, j in draw.choice(cells, count // len(photos)):
            top, left = draw.integers(0, CELL - SIDE + 1, 2) + (i * CELL, j * CELL)
            patches.append(photo[:, top : top + SIDE, left : left + SIDE])
            answers.append(label)
    order = torch.from_numpy(draw.permutation(len(patches)))
    return torch.stack(patches)[order].float() / 255, torch.tensor(answers)[order]


def network(images: Tensor, answers: Tensor, classes: int) -> MobileNet:
    """The trained network; it is trained once, in minutes, and kept."""
    torch.manual_seed(0)
    model = MobileNet(3, classes)
    kept(model, CHECKPOINT, lambda: fit(model, images, answers))
    return model.eval()


def fit(model: nn.Module, images: Tensor, answers: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-2)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(images), (BATCH,))
        batch = images[rows].flip(3) if step % 2 else images[rows]
        optimizer.zero_grad()
        functional.cross_entropy(model(batch), answers[rows]).backward()
        optimizer.step()
        schedule.step()
