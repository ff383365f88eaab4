"""The five tasks, as every tool gets them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.networks.tasks import task_at
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

import karui

THREADS = 1
MAX_DROP = 1.0  # points
TRAINING = {  # epochs and learning rate, for whoever trains after a cut
    "mnist": (3, 1e-2),
    "fashion": (14, 1e-2),
    "photos": (12, 1e-2),
    "minilm": (3, 1e-4),
    "vowels": (40, 1e-2),
}
TASKS = {  # where each is made
    "mnist": "benchmarks.networks.tasks:mnist",
    "fashion": "benchmarks.tradeoff:fashion",
    "photos": "benchmarks.real.photos:task",
    "minilm": "benchmarks.real.minilm:task",
    "vowels": "benchmarks.real.vowels:task",
}


@dataclass(frozen=True)
class Given:
    """A trained model in eval mode, and the data that a tool may use.

    example: positional inputs, eight rows. calibrate: inputs; train and select: inputs and labels, select for
    tools that watch the accuracy. epochs and rate: of training after a cut, alike for all. out: an empty
    folder. task: the same once more, as karui takes it.
    """

    model: nn.Module
    example: tuple[Tensor, ...]
    names: tuple[str, ...]
    calibrate: TensorDataset
    train: Dataset[tuple[Tensor, ...]]
    select: TensorDataset
    epochs: int
    rate: float
    out: Path
    task: karui.Task


def given(name: str, out: Path) -> Given:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    task = task_of(name)
    example = task.inputs if isinstance(task.inputs, dict) else {"inputs": task.inputs}
    train = task.train if isinstance(task.train, Dataset) else TensorDataset(*columns(task.train))
    calibrate = TensorDataset(*columns(task.calibrate)[: len(example)])
    select = TensorDataset(*columns(task.select))
    return Given(
        task.model,
        tuple(example.values()),
        tuple(example),
        calibrate,
        train,
        select,
        *TRAINING[name],
        out,
        task,
    )


def task_of(name: str) -> karui.Task:
    return task_at(TASKS[name])


def test_of(task: karui.Task) -> tuple[tuple[Tensor, ...], Tensor]:
    """All test samples: those that a tool may have watched, and those that none has seen."""
    *inputs, labels = (torch.cat(both) for both in zip(columns(task.select), columns(task.confirm)))
    return tuple(inputs), labels


def columns(split: Any) -> tuple[Tensor, ...]:
    """A split of a task as tensors of equal length: its inputs, then its labels where it has some."""
    if isinstance(split, Subset):
        return tuple(tensor[split.indices] for tensor in split.dataset.tensors)
    if isinstance(split, TensorDataset):
        return split.tensors
    if isinstance(split, tuple):
        return (*columns(split[0]), split[1])
    return tuple(split.values()) if isinstance(split, dict) else (split,)
