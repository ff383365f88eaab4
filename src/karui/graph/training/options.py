"""How a training goes: the options that all techniques which train have in common."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from karui.errors import UsageError

WARM_UP = 0.3  # of a one-cycle schedule
LOWEST = 1 / 25  # share of the learning rate that a one-cycle schedule starts from
HELD_OUT = 0.1  # of the training data, where it is stopped early


@dataclass(frozen=True)
class Options:
    """steps, or epochs over the training data; batch: samples of each batch.

    lr falls to zero as a cosine, rises and falls (one_cycle) or stays (constant). optimizer: adam, adamw or
    sgd (with momentum). precision: of the forward pass; 16-mixed scales gradients, and leaves out steps that
    overflow. clip: largest norm of the gradients. accumulate: batches of one step. patience: checks on
    held-out data without a gain after which training stops; the best weights are kept; there are CHECKS of
    them at most. freeze: share of the steps after which norms keep their statistics. devices: processes
    that share each batch. most_s: a training that will take longer is given up, by its first steps.
    """

    steps: int = 300
    epochs: int | None = None
    batch: int = 64
    lr: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    clip: float | None = None
    accumulate: int = 1
    patience: int | None = None
    freeze: float = 1.0
    seed: int = 0
    devices: int = 1
    most_s: float | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for what is out of range."""
        for name in ("batch", "accumulate", "devices"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip", "most_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be above 0, got {value:g}")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"patience must be at least 1, got {self.patience}")
        if self.weight_decay < 0 or not 0 <= self.momentum < 1 or not 0 <= self.freeze <= 1:
            raise UsageError("weight_decay is below 0, or momentum or freeze not between 0 and 1")

    @property
    def held_out(self) -> float:
        """Share of the training data that is not trained on."""
        return 0.0 if self.patience is None else HELD_OUT

    def total(self, steps_a_pass: int) -> int:
        """Steps of the whole run."""
        found = self.steps
        if self.epochs is not None:
            found = self.epochs * max(steps_a_pass // self.accumulate, 1)
        if found < 1:
            raise UsageError("there is no step to train", fix="steps or epochs of one or more")
        return found

    def share_of_lr(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by in a step, 0..1."""
        if self.schedule == "constant":
            return 1.0
        done = step / steps
        if self.schedule == "one_cycle":
            if done < WARM_UP:
                return LOWEST + (1 - LOWEST) * falling(1 - done / WARM_UP)
            done = (done - WARM_UP) / (1 - WARM_UP)
        return falling(done)

    def optimizer_of(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, self.lr, self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, self.lr, weight_decay=self.weight_decay)


def options_of(step: Any) -> Options:
    """The options of a technique that trains, from its fields of the same names."""
    known = {field.name for field in dataclasses.fields(step)}
    names = [field.name for field in dataclasses.fields(Options) if field.name in known]
    return Options(**{name: getattr(step, name) for name in names})


def falling(done: float) -> float:
    """Half a cosine, from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))


def keep_statistics(model: nn.Module, kept: bool) -> None:
    """Let norms with running statistics use and keep those they have, or learn from the batches."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            part.train(not kept)
