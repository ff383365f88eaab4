"""Verifying an artifact against a lock file: a gate that neither noise nor another machine sets off."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from karui import host
from karui.artifact import Artifact, open_artifact
from karui.bench.candidate import Candidate, Opened
from karui.bench.gate import LOOKS, centre, judge_change, sequential
from karui.budget import is_binary, judge
from karui.errors import MeasureFailed, Tampered, UsageError
from karui.measurement import Check
from karui.optimize.again import home_of, trial_of
from karui.optimize.lock import artifact_signature, files_digest, machine, read_lock, unpack_outcomes
from karui.optimize.openings import open_once, yardsticks
from karui.optimize.scene import Scene, answer_checks, of_data, of_run, probe_answers, score_named, scored
from karui.score import Score

if TYPE_CHECKING:
    from karui.data import Array

Word = Literal["as locked", "regression", "undecided", "told"]
NEAR_TIES = 2  # samples of 0 and 1 that rounding on another machine may turn, net


@dataclass(frozen=True)
class Finding:
    """``told`` is said but not judged. facts: the numbers of ``detail``."""

    name: str
    verdict: Word
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ways:
    """How to verify.

    home: the run folder; the artifact's own when None and there are no ``data``, the confirmation samples.
    beside: artifacts to time against, as in the lock; a run has them. against: "same_runtime" or "original".
    rebuilt: files may differ. any_host: the speed is judged on another kind of machine too.
    """

    home: Path | None = None
    data: Any = None
    beside: tuple[Path, ...] = ()
    against: str | None = None
    rebuilt: bool = False
    any_host: bool = False
    speed: bool = True


@dataclass(frozen=True)
class Beside:
    """What the artifact is timed against, and what the lock says of that: one of its ``speed``."""

    artifact: Artifact
    locked: Mapping[str, Any]


def verify_lock(path: Path, lock_path: Path, ways: Ways) -> dict[str, Any]:
    """Files, answers, score, size and speed of the artifact at ``path`` against the lock.

    Raises UsageError for the lock of another artifact and for other data, Tampered for a changed lock.
    """
    lock = read_lock(lock_path)
    with tempfile.TemporaryDirectory() as name:
        scratch, home, result = Path(name), None, None
        if ways.data is None:
            home, result, path = home_of(path, ways.home)
        try:
            artifact = open_artifact(path, scratch)
        except Tampered as error:
            return document(path, lock, lock_path, [Finding("files", "regression", error.line)])
        check_same(lock, artifact, lock_path)
        if home is not None and result is not None:
            scene = of_run(home, lock["target"], scratch / "scene")
            known = yardsticks(home, result, trial_of(result, artifact, home)) if ways.speed else {}
        else:
            scene, known = of_data(ways.data, artifact.signature, lock, scratch / "scene"), {}
        check_data(lock, scene)
        known |= opened_beside(lock, ways, scratch)
        beside = chosen(lock, known, ways) if ways.speed and lock["speed"] else None
        found = [files_finding(lock, artifact, rebuilt=ways.rebuilt), size_finding(lock, artifact)]
        found += examined(lock, scene, artifact, beside)
        if beside and all(finding.name not in ("runs", "speed") for finding in found):
            found.append(speed_checked(lock, scene, artifact, beside, any_host=ways.any_host))
    return document(path, lock, lock_path, found)


def document(
    path: Path, lock: Mapping[str, Any], lock_path: Path, found: Sequence[Finding]
) -> dict[str, Any]:
    said = {finding.verdict for finding in found}
    verdict = next((word for word in ("regression", "undecided") if word in said), "as locked")
    return {
        "schema": "karui.gate/1",
        "artifact": str(path),
        "lock": str(lock_path),
        "recipe": lock["artifact"]["recipe"],
        "verdict": verdict,
        "ok": verdict == "as locked",
        "checks": [asdict(finding) for finding in found],
        "notes": notes(lock),
    }


def notes(lock: Mapping[str, Any]) -> list[str]:
    """What is different here from where the lock was made."""
    then, now = lock["host"], host.facts()
    said = [f"{key}: {then[key]} then, {now[key]} now" for key in ("cpu", "cores") if then[key] != now[key]]
    if then["flags"] != now["flags"]:
        said.append(f"instruction sets: {different(then['flags'], now['flags'])}")
    old, new = then["versions"], now["versions"]
    changed = [
        f"{name} {old[name]} then, {new[name]} now" for name in old if new.get(name, old[name]) != old[name]
    ]
    return said + changed


def different(then: Sequence[str], now: Sequence[str]) -> str:
    return ", ".join(
        [
            *(f"no {flag} now" for flag in then if flag not in now),
            *(f"{flag} now" for flag in now if flag not in then),
        ]
    )


def check_same(lock: Mapping[str, Any], artifact: Artifact, lock_path: Path) -> None:
    mine, locked = artifact.recipe, lock["artifact"]["recipe"]
    if mine != locked:
        raise UsageError(
            f"{lock_path} is the lock of another artifact",
            why=f"it is of {locked}, and this is {mine}",
            fix="name its own lock, or make one: karui lock",
        )
    if artifact_signature(artifact) != lock["artifact"]["signature"]:
        raise UsageError(
            f"{lock_path} is the lock of another model",
            why="inputs or outputs differ",
            fix="name its own lock, or make one: karui lock",
        )


def check_data(lock: Mapping[str, Any], scene: Scene) -> None:
    locked = lock["data"]["fingerprint"]
    if scene.fingerprint != locked:
        raise UsageError(
            "these are not the data of the lock",
            why=f"their fingerprint is {scene.fingerprint[:12]}, the lock's {locked[:12]}",
            fix="give the data that the run confirmed on, or lock again",
        )


def opened_beside(lock: Mapping[str, Any], ways: Ways, scratch: Path) -> dict[str, Artifact]:
    """The artifacts that were named for timing, by what the lock calls them."""
    found: dict[str, Artifact] = {}
    for number, path in enumerate(ways.beside):
        artifact = open_artifact(path, scratch / f"beside{number}")
        names = [row["against"] for row in lock["speed"] if fits(row, artifact, rebuilt=ways.rebuilt)]
        if not names:
            asked = ", ".join(row["recipe"] for row in lock["speed"]) or "nothing"
            raise UsageError(
                f"{path} is not what the lock was timed against",
                why=f"that is {asked}, in the very same files",
                fix="export it from the run; --rebuilt takes it with other files",
            )
        found |= dict.fromkeys(names, artifact)
    return found


def fits(row: Mapping[str, Any], artifact: Artifact, *, rebuilt: bool) -> bool:
    return row["recipe"] == artifact.recipe and (rebuilt or row["files"] == files_digest(artifact))


def chosen(lock: Mapping[str, Any], known: Mapping[str, Artifact], ways: Ways) -> Beside:
    """The first of the lock's ratios, or the one asked for, that can be taken again."""
    for row in lock["speed"]:
        artifact = known.get(row["against"])
        if ways.against in (None, row["against"]) and artifact and fits(row, artifact, rebuilt=ways.rebuilt):
            return Beside(artifact, row)
    recipes = ", ".join(f"{row['recipe']} ({row['against']})" for row in lock["speed"])
    raise UsageError(
        "the artifact to time against is not at hand",
        why=f"the lock has ratios to {recipes}, in the very same files",
        fix="--beside or --run names it, --rebuilt takes other files, --no-speed does without",
    )


def files_finding(lock: Mapping[str, Any], artifact: Artifact, *, rebuilt: bool) -> Finding:
    then, now = lock["artifact"]["files"], artifact.files
    changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if not changed:
        return Finding("files", "as locked", f"{len(then)} with the locked SHA-256")
    detail = f"changed, added or lost: {', '.join(changed)}"
    return Finding("files", "told" if rebuilt else "regression", detail)


def size_finding(lock: Mapping[str, Any], artifact: Artifact) -> Finding:
    then, now = lock["artifact"]["size_bytes"], artifact.size_bytes
    ok = now <= then * (1 + lock["allowed"]["larger"])
    return Finding("size", "as locked" if ok else "regression", f"{now:,} bytes, locked {then:,}")


def examined(
    lock: Mapping[str, Any], scene: Scene, artifact: Artifact, beside: Beside | None
) -> list[Finding]:
    """Answers and score; an artifact that does not run is a regression.

    Where a reference interpreter stands in for the runtime, nothing can be timed, which is told.
    """
    score = score_named(lock["score"]["name"])
    standard = standard_answers(scene, beside)
    try:
        with opened(scene, artifact, "now") as candidate:
            checks = answer_checks(scene, candidate, standard)
            after, stands_in = scored(scene, candidate, score), candidate.stands_in
    except MeasureFailed as error:
        return [Finding("runs", "regression", error.line)]
    found = [answers_finding(checks), *score_findings(lock, score, after)]
    return [*found, Finding("speed", "told", f"not timed: {stands_in}")] if stands_in else found


def standard_answers(scene: Scene, beside: Beside | None) -> list[Array] | None:
    """What FP32 answers, where no run tells it."""
    if scene.home is not None or beside is None:
        return None
    with opened(scene, beside.artifact, "standard") as candidate:
        return probe_answers(scene, candidate)


@contextmanager
def opened(scene: Scene, artifact: Artifact, name: str) -> Iterator[Candidate]:
    candidate = scene.candidate(artifact, name)
    try:
        candidate.load()
        yield candidate
    finally:
        candidate.close()


def answers_finding(checks: Sequence[Check]) -> Finding:
    failed = [check for check in checks if not check.ok]
    if failed:
        return Finding("answers", "regression", "; ".join(f"{c.name}: {c.detail}" for c in failed))
    return Finding("answers", "as locked", f"{len(checks)} checks passed")


def score_findings(lock: Mapping[str, Any], score: Score, after: Array) -> list[Finding]:
    then, budget = unpack_outcomes(lock["score"]["outcomes"]), lock["score"]["budget"]
    found = [judge_score(then, after, lock["allowed"]["drop"], score)]
    if budget is not None:
        before = unpack_outcomes(lock["score"]["original_outcomes"])
        kept = judge(before, after, budget, higher_is_better=score.higher_is_better)
        interval = f"[{kept.low:.4f}, {kept.high:.4f}]"
        detail = f"drop {kept.drop:.4f} {interval} against the original, allowed {budget:.4g}"
        found.append(Finding("budget", "regression" if kept.verdict == "over" else "as locked", detail))
    return found


def judge_score(then: Array, now: Array, allowed: float, score: Score) -> Finding:
    """The drop on the locked samples themselves: no chance is in it but rounding that turns near ties.

    A drop of a few samples may be that, so a small set leaves it undecided. The interval says what other
    samples of the kind would show.
    """
    same = bool((then == now).all())
    found = judge(then, now, allowed, higher_is_better=score.higher_is_better, identical=same)
    locked = float(then.mean())
    facts = {"value": found.value, "locked": locked, "drop": found.drop, "low": found.low, "high": found.high}
    detail = f"{score.name} {found.value:.4f}, locked {locked:.4f}"
    if not same:
        detail += f": drop {found.drop:.4f} [{found.low:.4f}, {found.high:.4f}], allowed {allowed:.4g}"
    if found.drop <= allowed:
        return Finding("score", "as locked", detail, facts)
    if is_binary(then, now) and round(found.drop * found.n) <= NEAR_TIES:
        return Finding("score", "undecided", f"{detail}; {found.n} samples are too few to tell", facts)
    return Finding("score", "regression", detail, facts)


def speed_checked(
    lock: Mapping[str, Any], scene: Scene, artifact: Artifact, beside: Beside, *, any_host: bool
) -> Finding:
    """An artifact that ends while it is timed is a regression too."""
    try:
        return speed_finding(lock, scene, artifact, beside, any_host=any_host)
    except MeasureFailed as error:
        return Finding("runs", "regression", error.line)


def speed_finding(
    lock: Mapping[str, Any], scene: Scene, artifact: Artifact, beside: Beside, *, any_host: bool
) -> Finding:
    """On another kind of machine the ratio is told, and judged only when asked for."""
    judged = any_host or machine(lock["host"]) == machine(host.facts())
    row, allowed, numbers = beside.locked, lock["allowed"]["slower"], itertools.count()
    with Opened() as workers:

        def fresh() -> float:
            wanted = {row["against"]: beside.artifact}
            return open_once(scene, workers, artifact, wanted, next(numbers))[row["against"]]

        if judged:
            change, logs = sequential(row["openings"], fresh, allowed)
        else:
            logs = [fresh() for _ in range(LOOKS[0])]
            change = judge_change(row["openings"], logs, allowed)
    facts = asdict(change) | {
        "against": row["recipe"],
        "speedup": math.exp(centre(logs)[0]),
        "locked": row["ratio"],
        "openings": len(logs),
    }
    detail = speed_words(facts, allowed)
    if not judged:
        detail += "; another kind of machine: not judged without --any-host"
    return Finding("speed", change.verdict if judged else "told", detail, facts)


def speed_words(facts: Mapping[str, Any], allowed: float) -> str:
    return (
        f"{facts['speedup']:.3g}x as fast as {facts['against']}, locked {facts['locked']:.3g}x: "
        f"{facts['ratio']:.3f} [{facts['low']:.3f}, {facts['high']:.3f}] of it in {facts['openings']} "
        f"openings, allowed {1 / (1 + allowed):.3f}"
    )
