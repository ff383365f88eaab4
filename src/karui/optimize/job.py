"""A Job: one task made ready to measure, with its files in a run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui import host
from karui.artifact import Signature
from karui.bench.machine import HERE, Machine
from karui.budget import Budget
from karui.data import TARGETS, Split, Splits, fingerprint, save_arrays
from karui.optimize.origin import Origin
from karui.score import Score, evaluate
from karui.structure import unflatten
from karui.target import Target

if TYPE_CHECKING:
    from torch import nn

    from karui.data import Array, Arrays

PROBE_ROWS, PROBE_BYTES = 256, 64 << 20


@dataclass(frozen=True)
class Job:
    """Everything a trial needs to know.

    reference: flat outputs of the original model on the splits ``select``, ``confirm`` and ``probe``.
    allowed: how far the score may fall, in its own unit. teacher: the task's, or the original, to be asked.
    machine: where artifacts are run. effort: share of their steps that trainings take.
    """

    folder: Path
    name: str
    origin: Origin
    signature: Signature
    example: Arrays
    splits: Splits
    score: Score
    reference: Mapping[str, Sequence[Array]]
    target: Target
    budget: Budget
    allowed: float
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    train: Any = None
    teacher: nn.Module | None = None
    finetune: Callable[[Any], Any] | None = None
    student: Callable[[], Any] | None = None
    seed: int = 0
    machine: Machine = HERE
    effort: float = 1.0

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def outcomes(self, outputs: Sequence[Array], split: str) -> Array:
        """The score of flat ``outputs`` on a split: one number per sample, or one in all."""
        part: Split = getattr(self.splits, split)
        targets = part.targets
        if self.score.reference:
            targets = unflatten(self.reference[split], self.signature.tree)
        return evaluate(self.score, unflatten(outputs, self.signature.tree), targets, len(part))


def probe_rows(split: Split, batch: int) -> int:
    """How many rows the largest verified batch has."""
    row_bytes = sum(array[:1].nbytes for array in split.inputs.values())
    return min(len(split), max(batch, min(PROBE_ROWS, PROBE_BYTES // max(row_bytes, 1))))


def save_data(job: Job) -> None:
    """Write the arrays that child processes, and a later ``karui verify``, read."""
    import numpy as np

    names, probe = [port.name for port in job.signature.outputs], len(job.reference["probe"][0])
    select = job.splits.select.inputs
    save_arrays(job.splits.calibrate.inputs, job.data / "calibrate")
    save_arrays({name: array[:probe] for name, array in select.items()}, job.data / "probe")
    rows = {name: np.resize(array, (job.target.batch, *array.shape[1:])) for name, array in select.items()}
    save_arrays(rows, job.data / "timing")
    for what, split in (("select", job.splits.select), ("confirm", job.splits.confirm)):
        save_arrays(split.inputs, job.data / what)
        if split.targets is not None:
            np.save(targets_file(job.data / what), split.targets, allow_pickle=False)
    for what, outputs in job.reference.items():
        save_arrays(dict(zip(names, outputs)), job.data / "reference" / what)


def targets_file(split: Path) -> Path:
    return split.with_name(f"{split.name}.{TARGETS}.npy")


def read_targets(split: Path) -> Array | None:
    """The targets that ``save_data`` wrote beside a split's folder."""
    import numpy as np

    path = targets_file(split)
    return np.load(path, allow_pickle=False) if path.exists() else None


def identity(job: Job, recipes: Sequence[str]) -> dict[str, str]:
    """Digests of all that a resumed run must share with the interrupted one."""

    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]

    target = {key: value for key, value in asdict(job.target).items() if key != "on"}  # it may move
    return {
        "model": job.origin.digest,
        "data": digest(
            [fingerprint(s) for s in (job.splits.calibrate, job.splits.select, job.splits.confirm)]
        ),
        "options": digest([target, asdict(job.budget), job.score.name, job.seed, list(recipes)]),
        "machine": digest(job.machine.identity()) if job.target.on else "here",
        "versions": digest(host.versions()),
    }
