"""Verifying an artifact again, later or in CI, against what its run recorded; needs no model code."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from karui import score as scores
from karui.artifact import Artifact, load_artifact, unpack
from karui.bench.candidate import Candidate, Opened
from karui.bench.machine import HERE, Conditions, Machine
from karui.bench.remote import machine_at
from karui.bench.rounds import Pace, session
from karui.bench.verify import Expected, verify
from karui.budget import judge
from karui.data import open_arrays
from karui.errors import KaruiError, Tampered, UsageError
from karui.measurement import Check
from karui.optimize.job import read_targets
from karui.optimize.result import open_result
from karui.optimize.workshop import reference_folder
from karui.process import Limits
from karui.recipe import parse_recipe
from karui.structure import unflatten

AGREEMENT_MARGIN = 0.02  # splits differ by chance
PACE = Pace(openings=3)
SPEED_MARGIN = 0.05  # a lower speed-up counts only beyond this share and beyond both intervals


def verify_again(path: Path, run: Path | None, *, speed: bool = True, on: str = "") -> dict[str, Any]:
    """All checks of the artifact at ``path``; raises UsageError when there is no run to compare with.

    A file that was changed is a regression too, and ends the checks. on: the machine that runs it.
    """
    home, result, path = home_of(path, run)
    check_place(result, on, speed=speed)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            artifact = (
                unpack(path, Path(scratch) / "artifact") if path.suffix == ".zip" else load_artifact(path)
            )
        except Tampered as error:
            return outcome(path, "", [Check("files as recorded", False, error.line)])
        trial = trial_of(result, artifact, home)
        with machine_at(on) as machine:
            records = Records(home, result, trial, Path(scratch), machine)
            return outcome(path, artifact.recipe, run_checks(artifact, records, speed=speed))


def check_place(result: Mapping[str, Any], on: str, *, speed: bool) -> None:
    """A speed-up that was taken on one machine says nothing of another."""
    timed_on = result["target"].get("on", "")
    if speed and bool(timed_on) != bool(on):
        where, fix = (timed_on, f"--on {timed_on}") if timed_on else ("this machine", "leave --on out")
        raise UsageError(
            f"the run was timed on {where}", fix=f"{fix}; or --no-speed, to check the answers alone"
        )


def home_of(path: Path, run: Path | None) -> tuple[Path, Mapping[str, Any], Path]:
    """The run folder of ``path``, its result, and the artifact meant: of a run folder, its best."""
    home = run or find_run(path)
    result = open_result(home).facts
    if (path / "run.json").is_file() or (path / "result.json").is_file():
        path = best_of(path, result)
    return home, result, path


def trial_of(result: Mapping[str, Any], artifact: Artifact, home: Path) -> Mapping[str, Any]:
    """The trial that made the recipe of ``artifact``."""
    trial = next((t for t in result["trials"] if t["recipe"] == artifact.recipe), None)
    if trial is None or not trial["verification"]:
        raise UsageError(f"the run {home} never made {artifact.recipe}", fix="name its own run with --run")
    found: Mapping[str, Any] = trial
    return found


def outcome(path: Path, recipe: str, checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "schema": "karui.verify/1",
        "artifact": str(path),
        "recipe": recipe,
        "ok": all(check.ok for check in checks),
        "checks": [asdict(check) for check in checks],
    }


@dataclass(frozen=True)
class Records:
    """The run in ``home``, its result and one trial of it; ``scratch`` is a folder to write in."""

    home: Path
    result: Mapping[str, Any]
    trial: Mapping[str, Any]
    scratch: Path
    machine: Machine = HERE

    def candidate(self, artifact: Artifact, name: str) -> Candidate:
        """A worker for ``artifact`` under the run's conditions, not opened yet."""
        target, signature = self.result["target"], artifact.signature
        batch = target["batch"] if signature.dynamic_batch else signature.batch
        conditions = Conditions(batch, target["threads"], Limits(), self.machine)
        return Candidate(artifact, self.home / "data", self.scratch / name, conditions)


def find_run(path: Path) -> Path:
    for folder in (path, *path.resolve().parents[:3]):
        if (folder / "result.json").is_file():
            return folder
    raise UsageError(f"{path} lies in no run folder", fix="name the run with --run")


def best_of(folder: Path, result: Mapping[str, Any]) -> Path:
    if result["best"] is None:
        raise UsageError(f"the run {folder} chose nothing", fix="name the artifact folder of a trial")
    return folder / "trials" / str(result["best"]) / "artifact"


def run_checks(artifact: Artifact, records: Records, *, speed: bool) -> list[Check]:
    home, trial = records.home, records.trial
    candidate = None
    try:
        candidate = records.candidate(artifact, "now")
        candidate.load()
        original = list(open_arrays(reference_folder(home / "data", parse_recipe(artifact.recipe))).values())
        expected = Expected(home / "data" / "probe", len(original[0]), original)
        batch = records.result["target"]["batch"]
        checks = list(verify(candidate, expected, trial["precision"], batch).checks)
        checks += score_checks(candidate, records)
        if speed and trial["speedup"] and trial["speedup"]["verdict"] != "baseline":
            checks.append(speed_check(artifact, records))
    except KaruiError as error:
        return [Check("runs", False, error.line)]
    finally:
        if candidate:
            candidate.close()
    return checks


def score_checks(candidate: Candidate, records: Records) -> list[Check]:
    """The score on the confirmation split.

    A score function of the user's own is not known here: the agreement with the original stands in,
    and may not be surely lower than it was recorded.
    """
    import numpy as np

    data, result = records.home / "data", records.result
    known, allowed = scores.SCORES.get(result["task"]["score"]), result["budget"]["allowed"]
    if known is None:
        recorded = (records.trial["quality"] or {}).get("agreement")
        if recorded is None:
            return []
        known, allowed = scores.SCORES["agreement"], 1 - recorded + AGREEMENT_MARGIN
    before = list(open_arrays(data / "reference" / "confirm").values())
    rows, signature = range(len(before[0])), candidate.artifact.signature
    after = candidate.outputs(data / "confirm", signature.batch, rows)
    wanted = unflatten(before, signature.tree) if known.reference else read_targets(data / "confirm")
    old, new = (
        scores.evaluate(known, unflatten(list(outputs), signature.tree), wanted, len(rows))
        for outputs in (before, after)
    )
    same = bool(np.array_equal(old, new))
    found = judge(old, new, allowed, higher_is_better=known.higher_is_better, identical=same)
    detail = f"{known.name} {found.value:.4f}, drop {found.drop:.4f} [{found.low:.4f}, {found.high:.4f}]"
    return [Check("score within the budget", found.verdict != "over", detail)]


def speed_check(artifact: Artifact, records: Records) -> Check:
    folder = records.home / "trials" / records.result["baseline"] / "artifact"
    original = load_artifact(folder)
    with Opened() as opened:

        def both() -> tuple[dict[str, Candidate], dict[str, KaruiError]]:
            pair = {"baseline": original, "now": artifact}
            return opened.again({name: records.candidate(one, name) for name, one in pair.items()})

        rounds = session(both, [("baseline", "now")], PACE, seed=0)
    for error in rounds.failed.values():
        raise error
    now = rounds.ratio("baseline", "now", seed=0)
    then = records.trial["speedup"]
    ok = now.high >= then["low"] * (1 - SPEED_MARGIN)
    detail = f"{now.ratio:.3g}x [{now.low:.3g}, {now.high:.3g}], recorded {then['ratio']:.3g}x"
    return Check("as fast as recorded", ok, detail)
