"""A Task: the model, what goes in, and how to tell a good answer from a bad one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Data = Any  # a Dataset, a pair of arrays, an iterable of batches, or a function that gives one


@dataclass(frozen=True)
class Task:
    """One job for karui.

    model: a trained ``nn.Module``, or a function that makes one.
    inputs: example inputs with a leading batch axis: a tensor, a tuple of tensors (positional
        arguments) or a dict of tensors (keyword arguments, or one dict argument). Taken from the
        first batch of data when not given.
    calibrate, select, confirm: a ``Dataset``, a pair ``(inputs, targets)`` of arrays, inputs alone (an array,
        or a dict of arrays by name), or any iterable of ``(inputs, targets)`` batches. With labels absent
        (just inputs) use ``score="agreement"``. Give ``select`` alone and it is divided, deterministically.
    score: ``"top1"``, ``"top5"``, ``"mse"``, ``"agreement"``, a ``karui.Score`` or a function of
        (outputs, targets) that returns one number per sample or one for the whole set; higher is
        better.
    train: training data, for steps that train; calibration data are drawn from it when
        ``calibrate`` is not given.
    classes: names of the classes, for reports.
    teacher: the model whose answers steps that train learn from: a module, or a function that makes one;
        the task's own model when not given.
    finetune: your own training, for the step ``finetune``: it is given a model in eval mode and trains it
        in place, or returns the trained one.
    student: makes the network that the step ``distill`` teaches, with the inputs and outputs of the model;
        a narrower copy of the model when not given.
    """

    model: Any
    inputs: Any = None
    calibrate: Data | None = None
    select: Data | None = None
    confirm: Data | None = None
    score: Any = "top1"
    train: Data | Callable[..., Any] | None = None
    name: str = ""
    classes: Sequence[str] = ()
    teacher: Any = None
    finetune: Callable[[Any], Any] | None = None
    student: Callable[[], Any] | None = None
