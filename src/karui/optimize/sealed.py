"""A job as bytes, for our own processes that build it: the user's code, model and data travel by value.

The one place that pickles. Only what this run has sealed is opened, by processes that it started; no file of
a user, a run folder or an artifact ever is.
"""

from __future__ import annotations

import dataclasses
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

import cloudpickle

from karui import host
from karui.artifact import Artifact
from karui.bench.machine import HERE, Conditions, Machine, Worker
from karui.errors import KaruiError, UsageError, foreign
from karui.optimize.job import Job
from karui.process import Limits


@dataclass(frozen=True)
class Sealed:
    """What a builder is given. versions: of the packages here; a builder must have the same."""

    job: Job
    limits: Limits
    versions: dict[str, str]


@final
@dataclass(frozen=True)
class Pictured(Machine):
    """The machine that artifacts are built for, as it was found; what is run of them is run here."""

    told: dict[str, Any]
    instructions: frozenset[str]

    def start(self, artifact: Artifact, data: Path, log: Path, conditions: Conditions) -> Worker:
        return HERE.start(artifact, data, log, dataclasses.replace(conditions, machine=HERE))

    def check(self, artifact: Artifact) -> None:
        HERE.check(artifact)

    def lacks(self, runtime: str) -> str:
        return HERE.lacks(runtime)

    def notes(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        return HERE.facts()

    def identity(self) -> dict[str, Any]:
        return self.told

    def flags(self) -> frozenset[str]:
        return self.instructions

    def cpus(self) -> list[int]:
        return HERE.cpus()

    def close(self) -> None:
        return


def seal(job: Job, limits: Limits) -> bytes:
    """Raises UsageError when something in the task holds on to this process."""
    machine = Pictured(job.machine.identity(), job.machine.flags())
    fix = "leave --jobs and --ray out, or give the task functions that make what cannot be sent"
    with by_value(), foreign(UsageError, "the task cannot be sent to another process", fix=fix):
        sealed = Sealed(dataclasses.replace(job, machine=machine), limits, host.versions())
        found: bytes = cloudpickle.dumps(sealed)
    return found


def unseal(sealed: bytes) -> Sealed:
    """Raises KaruiError where other versions are installed than where it was sealed."""
    with foreign(
        KaruiError, "the task cannot be read on this builder", fix="install the same packages on it"
    ):
        found: Sealed = cloudpickle.loads(sealed)
    mine = host.versions()
    names = sorted(mine.keys() | found.versions.keys())
    if other := [name for name in names if mine.get(name) != found.versions.get(name)]:
        why = "; ".join(
            f"{name} {mine.get(name, 'none')}, not {found.versions.get(name, 'none')}" for name in other
        )
        raise KaruiError("a builder has other versions of packages", why=why, fix="install the same on all")
    return found


@contextmanager
def by_value() -> Iterator[None]:
    """Send code of modules that are not installed, which no other process could import."""
    registered = [module for module in list(sys.modules.values()) if is_users(module)]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def is_users(module: Any) -> bool:
    """Whether a module is neither karui's, nor installed, nor Python's own."""
    file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    name = getattr(module, "__name__", "")
    if not file or name in ("__main__", "__mp_main__") or name.partition(".")[0] == "karui":
        return False
    installed = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    path = Path(file).resolve()
    return sys.modules.get(name) is module and not any(
        path.is_relative_to(Path(p).resolve()) for p in installed
    )
