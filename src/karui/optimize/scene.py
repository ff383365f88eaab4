"""What a locked artifact is asked with: the confirmation split, from its run or from the user again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui import score as scores
from karui.artifact import Artifact, Signature
from karui.bench.candidate import Candidate
from karui.bench.machine import Conditions
from karui.bench.verify import Expected, verify
from karui.data import Split, fingerprint, items, open_arrays, read_split, save_arrays, three_splits
from karui.errors import UsageError
from karui.measurement import Check
from karui.optimize.job import probe_rows, read_targets
from karui.optimize.workshop import reference_folder
from karui.process import Limits
from karui.recipe import parse_recipe
from karui.structure import unflatten

if TYPE_CHECKING:
    from karui.data import Array


@dataclass(frozen=True)
class Scene:
    """rows: folder with the inputs of ``split``. scratch: to write in; it holds ``timing``.

    home: the run folder, where there is one: the original's answers lie there.
    """

    split: Split
    rows: Path
    scratch: Path
    batch: int
    threads: int
    home: Path | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.split)

    def candidate(self, artifact: Artifact, name: str) -> Candidate:
        """A worker for ``artifact``, not opened yet."""
        conditions = Conditions(self.size(artifact), self.threads, Limits())
        return Candidate(artifact, self.scratch, self.scratch / name, conditions)

    def size(self, artifact: Artifact) -> int:
        """Rows a call."""
        return self.batch if artifact.signature.dynamic_batch else artifact.signature.batch


def of_run(home: Path, target: Mapping[str, Any], scratch: Path) -> Scene:
    """From the data that a run left in ``home``. target: has batch and threads."""
    rows = home / "data" / "confirm"
    if not rows.is_dir():
        raise UsageError(f"{home} holds no data", fix="name them with --data file.py:name")
    split = Split(open_arrays(rows), read_targets(rows))
    return with_timing(Scene(split, rows, scratch, target["batch"], target["threads"], home))


def of_data(data: Any, signature: Signature, lock: Mapping[str, Any], scratch: Path) -> Scene:
    """From a data set of the user: the locked samples, or the set that the run divided to get them.

    Raises UsageError when it is neither.
    """
    names = [port.name for port in signature.inputs]
    given = read_split(list(items(data, "confirmation")), names, "confirmation")
    locked, seed = lock["data"]["fingerprint"], lock["data"]["seed"]
    found = next((split for split in readings(given, seed) if fingerprint(split) == locked), None)
    if found is None:
        raise UsageError(
            "these are not the data of the lock",
            why=f"no part of the {len(given)} samples has the fingerprint {locked[:12]}",
            fix="give the set that the run confirmed on, or the one it divided, in the same order",
        )
    save_arrays(found.inputs, scratch / "confirm")
    target = lock["target"]
    return with_timing(Scene(found, scratch / "confirm", scratch, target["batch"], target["threads"]))


def readings(given: Split, seed: int) -> list[Split]:
    """The set itself, and what a run confirms on that is given it alone, or with calibration data."""
    found = [given]
    for calibrate in (None, given.take(slice(0, 1))):
        if len(given) > 3:
            found.append(three_splits(calibrate, given, None, seed).confirm)
    return found


def with_timing(scene: Scene) -> Scene:
    import numpy as np

    inputs = scene.split.inputs
    size = scene.batch
    batch = {name: np.resize(array[:size], (size, *array.shape[1:])) for name, array in inputs.items()}
    save_arrays(batch, scene.scratch / "timing")
    return scene


def answer_checks(scene: Scene, candidate: Candidate, standard: Sequence[Array] | None = None) -> list[Check]:
    """The checks of ``karui.bench.verify`` on an opened artifact.

    standard: what FP32 answers on the probe rows of the split, used where there is no run to tell what the
    original answers. Without either, answers are only compared with each other.
    """
    artifact = candidate.artifact
    recipe = parse_recipe(artifact.recipe)
    precision, own = recipe.numerics.default, False
    if scene.home is not None:
        original = list(open_arrays(reference_folder(scene.home / "data", recipe)).values())
        expected = Expected(scene.home / "data" / "probe", len(original[0]), original)
    else:
        own = standard is None or bool(recipe.steps)
        answers = probe_answers(scene, candidate) if own else standard
        assert answers is not None
        expected = Expected(scene.rows, len(answers[0]), answers)
    checks = verify(candidate, expected, precision, scene.batch).checks
    return [check for check in checks if not (own and check.name.startswith("close to"))]


def probe_answers(scene: Scene, candidate: Candidate) -> list[Array]:
    """On the first rows of the split, in one call where the batch is free."""
    count, signature = probe_rows(scene.split, scene.batch), candidate.artifact.signature
    size = count if signature.dynamic_batch else signature.batch
    return candidate.outputs(scene.rows, size, range(count))


def score_named(name: str) -> scores.Score:
    """The score a lock can hold: for a function of the user's own, not known here, agreement stands in."""
    return scores.SCORES.get(name) or scores.SCORES["agreement"]


def outcomes(scene: Scene, score: scores.Score, outputs: Sequence[Array], tree: Any) -> Array:
    """The score of flat ``outputs`` on the split, one number per sample."""
    wanted = unflatten(original_answers(scene), tree) if score.reference else scene.split.targets
    if wanted is None:
        raise UsageError(f"the score {score.name!r} needs targets, and the data have none")
    return scores.evaluate(score, unflatten(list(outputs), tree), wanted, len(scene.split))


def original_answers(scene: Scene) -> list[Array]:
    if scene.home is None:
        raise UsageError(
            "the score 'agreement' compares with what the original answers",
            why="those answers lie in the run folder",
            fix="name it with --run",
        )
    return list(open_arrays(scene.home / "data" / "reference" / "confirm").values())


def scored(scene: Scene, candidate: Candidate, score: scores.Score) -> Array:
    """Outcomes of an opened artifact, asked as it will be deployed."""
    size = scene.size(candidate.artifact)
    outputs = candidate.outputs(scene.rows, size, range(len(scene.split)))
    return outcomes(scene, score, outputs, candidate.artifact.signature.tree)
