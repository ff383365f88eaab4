"""What a builder made of a recipe, and how it becomes a trial's artifact here."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karui.artifact import Artifact, load_artifact, publish, safe_entries
from karui.errors import KaruiError
from karui.measurement import Measurement
from karui.optimize.job import Job
from karui.optimize.record import read_measurement
from karui.optimize.workshop import reference_folder
from karui.process import error_told
from karui.recipe import parse_recipe


@dataclass(frozen=True)
class Made:
    """archive: a zip of the artifact, None where it could not be built. measured: verified and scored there,
    but not timed; None where that has to be done here. facts: when (seconds since 1970) and on which host.
    """

    recipe: str
    archive: Path | None = None
    measured: Measurement | None = None
    error: KaruiError | None = None
    build_s: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_made(found: Mapping[str, Any], archive: Path | None) -> Made:
    """The answer of a builder; its archive as it lies here."""
    measured = found.get("measured")
    return Made(
        found["recipe"],
        archive,
        read_measurement(measured) if measured else None,
        error_told(found),
        found.get("build_s", 0.0),
        {key: found[key] for key in ("began", "ended", "host")},
    )


def placed(made: Made, job: Job, home: Path) -> Artifact:
    """Unpack what was built, once, into the folder ``home`` of its trial. Raises the error that it met."""
    if made.archive is None:
        raise made.error or KaruiError(f"nothing was built of {made.recipe}")
    recipe = parse_recipe(made.recipe)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    with zipfile.ZipFile(made.archive) as bundle:
        for entry, path in safe_entries(bundle, home):
            path.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(entry) as source, path.open("wb") as goal:
                shutil.copyfileobj(source, goal)
    made.archive.unlink()
    if recipe.steps:
        steps = reference_folder(job.data, recipe)
        shutil.rmtree(steps, ignore_errors=True)
        (home / "steps").replace(steps)
    (home / "artifact").replace(home / "draft")
    publish(home / "draft", home / "artifact")
    return load_artifact(home / "artifact")
