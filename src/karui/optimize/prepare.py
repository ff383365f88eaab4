"""From a Task to a Job: check everything a user can get wrong before any time is spent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.artifact import Signature
from karui.budget import Budget, default_drop
from karui.data import Split, example_of, items, read_split, three_splits
from karui.errors import UsageError
from karui.optimize.job import Job, probe_rows
from karui.optimize.origin import Origin, describe, from_model, module_of
from karui.score import Score, resolve
from karui.target import Target
from karui.task import Task

if TYPE_CHECKING:
    from torch import nn


def prepare(
    task: Task, target: Target, budget: Budget, folder: Path, seed: int = 0, *, consume: bool = False
) -> Job:
    """Read model and data, and compute what the original answers; nothing is written yet.

    consume: hold the given model itself (see ``from_model``).

    Raises UsageError for anything in the task that cannot be measured.
    """
    if task.select is None:
        raise UsageError(
            "the task has no validation data", fix="give select=..., an iterable of (inputs, targets)"
        )
    score = resolve(task.score)
    batches = {what: list(items(data, what)) for what, data in sources(task).items()}
    example = task.inputs if task.inputs is not None else example_of(batches["selection"], "selection")
    origin = from_model(task.model, example, consume=consume)
    signature, arrays = describe(origin, example, target.batch)
    names = [port.name for port in signature.inputs]
    read = {what: read_split(found, names, what) for what, found in batches.items()}
    for what, split in read.items():
        check_inputs(split, signature, what)
    splits = three_splits(read.get("calibration"), read["selection"], read.get("confirmation"), seed)
    reference = {
        "select": origin.answers(signature, splits.select.inputs),
        "confirm": origin.answers(signature, splits.confirm.inputs),
    }
    probe = probe_rows(splits.select, target.batch)
    job = Job(
        folder=folder,
        name=task.name or "task",
        origin=origin,
        signature=signature,
        example=arrays,
        splits=splits,
        score=score,
        reference=reference | {"probe": [output[:probe] for output in reference["select"]]},
        target=target,
        budget=budget,
        allowed=0.0,
        classes=tuple(task.classes),
        notes=(*origin.notes, *splits.notes),
        seed=seed,
    )
    return with_budget(with_training(job, task, teacher_of(task, origin, consume=consume)))


def sources(task: Task) -> dict[str, Any]:
    """The data sets that were given; training data stand in for a missing calibration set."""
    given = {"calibration": task.calibrate, "selection": task.select, "confirmation": task.confirm}
    if task.calibrate is None and task.train is not None and not callable(task.train):
        given["calibration"] = first_samples(task.train)
    return {what: data for what, data in given.items() if data is not None}


def with_training(job: Job, task: Task, teacher: nn.Module | None) -> Job:
    return dataclasses.replace(
        job, train=task.train, teacher=teacher, finetune=task.finetune, student=task.student
    )


def teacher_of(task: Task, origin: Origin, *, consume: bool) -> nn.Module | None:
    """The task's teacher, or else the original, which is none where it will be changed itself."""
    if task.teacher is None:
        return None if consume else origin.model
    return module_of(task.teacher, "teacher")


def first_samples(train: Any, count: int = 512) -> list[Any]:
    batches, seen = [], 0
    for batch in items(train, "training"):
        batches.append(batch)
        seen += len(batch[-1]) if isinstance(batch, (tuple, list)) else 1
        if seen >= count:
            break
    return batches


def with_budget(job: Job) -> Job:
    """Fill in the allowed drop, having checked that the score fits the data."""
    import numpy as np

    for what in ("select", "confirm"):
        check_targets(job.score, getattr(job.splits, what))
        outcomes = job.outcomes(job.reference[what], what)
        if not np.isfinite(outcomes).all():
            raise UsageError(
                "the score of the original model is NaN or infinite", fix="check the score and the data"
            )
    outcomes = job.outcomes(job.reference["select"], "select")
    budget = job.budget
    if budget.max_drop is None:
        drop, unit = default_drop(job.score.share)
        budget = dataclasses.replace(budget, max_drop=drop, unit=unit)
    allowed = budget.allowed(float(outcomes.mean()))
    return dataclasses.replace(job, budget=budget, allowed=allowed)


def check_inputs(split: Split, signature: Signature, what: str) -> None:
    """Every sample has the form of the example inputs: what is captured takes no other."""
    for port in signature.inputs:
        array = split.inputs[port.name]
        if str(array.dtype) != port.dtype or array.shape[1:] != port.shape[1:]:
            given, wanted = f"{array.dtype} {array.shape[1:]}", f"{port.dtype} {port.shape[1:]}"
            raise UsageError(
                f"the {what} set does not fit the example inputs",
                why=f"{port.name} is {given} per sample, in the example inputs {wanted}",
                fix="give all data in the dtype and shape that the model takes",
            )


def check_targets(score: Score, split: Split) -> None:
    if split.targets is None and not score.reference:
        raise UsageError(
            f"the score {score.name!r} needs targets, and the data have none",
            fix='give (inputs, targets) batches, or score="agreement", which needs no labels',
        )
