"""A builder: builds, verifies and scores recipes of one job in a folder of its own, and times nothing.

It lives for a whole run, so that imports and captures are paid once. ``python -m karui.optimize.hand`` is one
that is spoken to over its pipes.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from karui import host
from karui.artifact import Artifact
from karui.errors import KaruiError
from karui.measurement import Measurement
from karui.optimize.attempt import checked, untried
from karui.optimize.job import Job, save_data
from karui.optimize.sealed import unseal
from karui.optimize.workshop import Workshop, reference_folder
from karui.process import serve, told
from karui.recipe import Recipe, parse_recipe


class Hand:
    """Unseals the job into ``folder``; ``threads`` for all that it computes."""

    def __init__(self, sealed: bytes, folder: Path, threads: int) -> None:
        import torch

        found = unseal(sealed)
        torch.set_num_threads(threads)
        self.job: Job = dataclasses.replace(found.job, folder=folder)
        self.workshop = Workshop(self.job, found.limits, threads=threads)
        save_data(self.job)

    @property
    def alike(self) -> bool:
        """Whether answers given here are those of the machine that artifacts are for."""
        told, mine = self.job.machine, host.flags()
        return not self.job.target.on and told.identity()["cpu"] == host.cpu_name() and told.flags() == mine

    def make(self, recipes: Sequence[str]) -> list[dict[str, Any]]:
        """What came of each, as JSON; ``archive`` is a zip in this hand's folder."""
        return [self.made(parse_recipe(text)) for text in recipes]

    def made(self, recipe: Recipe) -> dict[str, Any]:
        found: dict[str, Any] = {"recipe": str(recipe), "began": time.time()}
        trial = untried(recipe)
        try:
            artifact = self.workshop.build(recipe, trial.id)
            found["build_s"] = time.time() - found["began"]
            found["archive"] = str(self.packed(recipe, artifact))
            found["measured"] = asdict(self.scored(artifact, recipe)) if self.alike else None
        except KaruiError as error:
            found |= told(error)
        shutil.rmtree(self.job.folder / "trials" / trial.id, ignore_errors=True)
        return found | {"ended": time.time(), "host": host_id()}

    def scored(self, artifact: Artifact, recipe: Recipe) -> Measurement:
        candidate = self.workshop.open(artifact)
        try:
            return checked(self.job, candidate, untried(recipe))
        finally:
            candidate.close()

    def packed(self, recipe: Recipe, artifact: Artifact) -> Path:
        """The artifact, and what it has to be verified against."""
        home = artifact.folder.parent
        parts = {"artifact": artifact.folder, "reference": home / "reference"}
        if recipe.steps:
            parts["steps"] = reference_folder(self.job.data, recipe)
        archive = self.job.folder / f"{home.name}.zip"
        with zipfile.ZipFile(archive, "w") as bundle:
            for name, folder in parts.items():
                for path in sorted(folder.rglob("*")):
                    if path.is_file():
                        bundle.write(path, f"{name}/{path.relative_to(folder).as_posix()}")
        return archive

    def close(self) -> None:
        self.workshop.close()


def host_id() -> str:
    """The same for all processes, and containers, that share a kernel."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else platform.node()


def main(sealed: str, folder: str, threads: str) -> None:
    """Answer messages on standard input, each with recipes to ``make``."""
    hands: list[Hand] = []

    def answer(message: dict[str, Any]) -> Mapping[str, Any]:
        if not hands:
            hands.append(Hand(Path(sealed).read_bytes(), Path(folder), int(threads)))
        return {"made": hands[0].make(message["make"])}

    serve(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
