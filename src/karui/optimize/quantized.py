"""Quantization alone: artifacts in INT8 for some runtimes, verified and scored, but not timed."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from karui.artifact import Artifact
from karui.budget import Budget
from karui.errors import KaruiError, UsageError
from karui.optimize.admit import ask_of, refusal_of
from karui.optimize.attempt import checked, untried
from karui.optimize.job import save_data
from karui.optimize.prepare import prepare
from karui.optimize.streamed import check_recipes, in_files, origin_of
from karui.optimize.workshop import Workshop
from karui.process import Limits
from karui.recipe import Recipe
from karui.target import Target
from karui.task import Task


def quantize(
    task: Task, recipes: Sequence[Recipe], out: Path, shards: Path | None = None
) -> list[dict[str, Any]]:
    """One artifact for each recipe, in ``out``; see ``karui.quantize``."""
    if out.exists():
        raise UsageError(f"{out} is there already", fix="name a new folder")
    if shards:
        check_recipes(recipes)
    whole = in_files(task.model, shards) if shards else None
    if whole:
        task = dataclasses.replace(task, model=origin_of(whole))
    with tempfile.TemporaryDirectory() as name:
        job = prepare(with_answers(task), Target("cpu"), Budget(max_drop=100.0), Path(name))
        with Workshop(job, Limits()) as workshop:
            save_data(job)
            build = partial(whole.build, job) if whole else workshop.build
            found = [made(workshop, recipe, build) for recipe in recipes]
        good = [one for one in found if "artifact" in one]
        if not good:
            reasons = "; ".join(f"{one['recipe']}: {one['failure']}" for one in found)
            raise UsageError("nothing could be quantized", why=reasons)
        for one in good:
            one["artifact"] = str(moved(one["artifact"], out))
    return found


def with_answers(task: Task) -> Task:
    """Without validation data, agreement with the original on the calibration data stands in."""
    if task.select is not None:
        return task
    if task.calibrate is None:
        raise UsageError("the task has no calibration data", fix="give calibrate=... or select=...")
    return dataclasses.replace(task, select=task.calibrate, score="agreement")


def made(workshop: Workshop, recipe: Recipe, build: Callable[[Recipe, str], Artifact]) -> dict[str, Any]:
    """What came of one recipe; a failure is told, not raised."""
    trial = untried(recipe)
    facts: dict[str, Any] = {"recipe": str(recipe), "runtime": recipe.runtime.name}
    if reason := refusal_of(recipe, ask_of(workshop.job)):
        return facts | {"failure": reason}
    try:
        artifact = build(recipe, trial.id)
        with workshop.measured(artifact, trial.id) as candidate:
            found = checked(workshop.job, candidate, trial)
    except KaruiError as error:
        return facts | {"failure": error.line}
    if found.verification.failure:
        return facts | {"failure": f"verification: {found.verification.failure}"}
    assert found.quality is not None
    return facts | {
        "artifact": artifact.folder,
        "size_bytes": found.size_bytes,
        "executed": dict(found.executed),
        "verification": found.verification.status,
        "score": dataclasses.asdict(found.quality) | {"name": workshop.job.score.name},
    }


def moved(artifact: Path, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(artifact, out / artifact.parent.name))
