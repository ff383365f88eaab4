"""Making a lock: an artifact of a run is checked, scored and timed once more, with care."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui import host
from karui.artifact import Artifact, open_artifact
from karui.bench.candidate import Opened
from karui.bench.gate import centre, spread, student
from karui.budget import Budget, Unit, default_drop
from karui.errors import MeasureFailed
from karui.optimize.again import home_of, trial_of
from karui.optimize.lock import files_digest, pack_outcomes
from karui.optimize.openings import open_once, yardsticks
from karui.optimize.scene import Scene, answer_checks, of_run, original_answers, outcomes, score_named, scored

if TYPE_CHECKING:
    from karui.data import Array
    from karui.score import Score

MOST_OPENINGS = 32
SURE = 0.25  # of the allowed slowdown: how well a ratio should be known


@dataclass(frozen=True)
class Allowed:
    """What a later artifact may lose against the lock; half of what is to be caught.

    drop: in ``unit``; None for half a point of a share, or half a percent of another score. slower, larger:
    shares.
    """

    drop: float | None = None
    unit: Unit = "points"
    slower: float = 0.05
    larger: float = 0.01


@dataclass(frozen=True)
class Effort:
    """openings: at least; 0 leaves timing out. against: "same_runtime" or "original" alone, None for both."""

    openings: int = 12
    against: str | None = None


def make_lock(path: Path, run: Path | None, allowed: Allowed, effort: Effort) -> dict[str, Any]:
    """The facts of a lock of the artifact at ``path`` (or a run's best), made on this machine.

    Raises MeasureFailed for an artifact that does not pass its checks.
    """
    home, result, path = home_of(path, run)
    with tempfile.TemporaryDirectory() as name:
        artifact = open_artifact(path, Path(name))
        trial = trial_of(result, artifact, home)
        scene = of_run(home, result["target"], Path(name) / "scene")
        score = score_named(result["task"]["score"])
        before = outcomes(scene, score, original_answers(scene), artifact.signature.tree)
        after, stands_in = examined(scene, artifact, score)
        against = {} if stands_in or not effort.openings else yardsticks(home, result, trial)
        against = {name: one for name, one in against.items() if effort.against in (None, name)}
        speed = timed(scene, artifact, against, (effort.openings, allowed.slower))
    return {
        "karui": host.versions().get("karui", ""),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "artifact": artifact_facts(artifact),
        "target": {key: result["target"][key] for key in ("batch", "threads")},
        "data": {"fingerprint": scene.fingerprint, "samples": len(scene.split), "seed": result["seed"]},
        "score": score_facts(score, result, before, after),
        "allowed": allowances(allowed, score, after),
        "speed": speed,
        "host": host.facts(),
    }


def examined(scene: Scene, artifact: Artifact, score: Score) -> tuple[Array, str]:
    """Outcomes of the artifact, having passed its checks; and why it cannot be timed here, or nothing."""
    candidate = scene.candidate(artifact, "examined")
    try:
        candidate.load()
        failed = [check for check in answer_checks(scene, candidate) if not check.ok]
        if failed:
            why = f"{failed[0].name}: {failed[0].detail}"
            raise MeasureFailed(f"{artifact.recipe} does not pass its checks", why=why, fix="karui verify")
        return scored(scene, candidate, score), candidate.stands_in
    finally:
        candidate.close()


def timed(
    scene: Scene, artifact: Artifact, against: Mapping[str, Artifact], effort: tuple[int, float]
) -> list[dict[str, Any]]:
    """One entry for each of ``against``. effort: the least number of openings, and the allowed slowdown.

    More openings follow until the first ratio, which is the one that later decides, is known well.
    """
    least, slower = effort
    logs: dict[str, list[float]] = {name: [] for name in against}
    with Opened() as opened:
        for number in range(MOST_OPENINGS if against else 0):
            for name, ratio in open_once(scene, opened, artifact, against, number).items():
                logs[name].append(round(ratio, 5))
            deciding = next(iter(logs.values()))
            if number + 1 >= least and reach(deciding) < SURE * math.log1p(slower):
                break
    return [speed_facts(name, against[name], found) for name, found in logs.items()]


def reach(logs: Sequence[float]) -> float:
    """Half of the 95 % interval."""
    _, error, freedom = centre(logs)
    return student(0.975, freedom) * error


def speed_facts(against: str, artifact: Artifact, logs: Sequence[float]) -> dict[str, Any]:
    middle, half = centre(logs)[0], reach(logs)
    return {
        "against": against,
        "recipe": artifact.recipe,
        "files": files_digest(artifact),
        "ratio": math.exp(middle),
        "low": math.exp(middle - half),
        "high": math.exp(middle + half),
        "spread": spread(logs),
        "openings": list(logs),
    }


def artifact_facts(artifact: Artifact) -> dict[str, Any]:
    facts = dataclasses.asdict(artifact)
    kept = ("recipe", "runtime", "signature", "executed", "versions", "files")
    return {key: facts[key] for key in kept} | {"size_bytes": artifact.size_bytes}


def score_facts(score: Score, result: Mapping[str, Any], before: Array, after: Array) -> dict[str, Any]:
    """``stands_in``: the name of the user's own score that agreement stands in for, or null."""
    asked = result["task"]["score"]
    return {
        "name": score.name,
        "stands_in": None if asked == score.name else asked,
        "value": float(after.mean()),
        "original": float(before.mean()),
        "outcomes": pack_outcomes(after),
        "original_outcomes": pack_outcomes(before),
        "budget": result["budget"]["allowed"] if asked == score.name else None,
    }


def allowances(allowed: Allowed, score: Score, after: Array) -> dict[str, float]:
    """In the score's own unit, and shares."""
    drop, unit = allowed.drop, allowed.unit
    if drop is None:
        usual, unit = default_drop(score.share)
        drop = usual / 2
    worst = Budget(max_drop=drop, unit=unit).allowed(float(after.mean()))
    return {"drop": worst, "slower": allowed.slower, "larger": allowed.larger}
