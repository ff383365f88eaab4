"""The Result of a run: what a user reads, saves and acts upon."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from karui import host
from karui.artifact import Artifact, load_artifact
from karui.budget import Objective
from karui.data import Split
from karui.errors import UsageError, foreign
from karui.journal import START
from karui.measurement import Trial
from karui.optimize.attempt import trial_id_of_baseline
from karui.optimize.conclude import Conclusion, by_latency, pareto
from karui.optimize.job import Job
from karui.optimize.origin import facts_of
from karui.optimize.record import dict_or_none, trial_json
from karui.report import write
from karui.report.text import plain

SCHEMA = "karui.result/1"


@dataclass(frozen=True)
class Result:
    """``facts`` is the result document (schema ``karui.result/1``), ``folder`` the run folder."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def best(self) -> Artifact | None:
        """The chosen artifact, or None when nothing met the budget."""
        chosen = self.facts["best"]
        trial = next((t for t in self.facts["trials"] if t["id"] == chosen), None)
        return load_artifact(self.folder / trial["artifact"]) if trial else None

    @property
    def exit_code(self) -> int:
        return int(self.facts["verdict"]["exit_code"])

    def table(self) -> str:
        """The table as plain text."""
        return plain(self.facts)

    def report(self, path: Path | str) -> list[Path]:
        """Write report.html, report.md and result.json into the folder ``path``."""
        Path(path).mkdir(parents=True, exist_ok=True)
        return write(self.facts, Path(path))

    def to_json(self) -> str:
        return json.dumps(self.facts, indent=2, ensure_ascii=False)


def open_result(folder: Path) -> Result:
    """The result that an earlier run left in ``folder``."""
    path = folder / "result.json"
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", fix=START)
    if not path.is_file():
        raise UsageError(f"{folder} holds no finished run", fix=f"karui resume {folder}")
    with foreign(UsageError, f"{path} cannot be read", fix=f"karui resume {folder}"):
        return Result(folder, json.loads(path.read_text(encoding="utf-8")))


def document(
    job: Job, done: Conclusion, refused: Sequence[Mapping[str, Any]], command: str, duration_s: float
) -> dict[str, Any]:
    """The result document."""
    machine = job.machine.facts()
    return {
        "schema": SCHEMA,
        "karui": host.versions().get("karui", ""),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "seed": job.seed,
        "duration_s": duration_s,
        "task": task_facts(job),
        "target": asdict(job.target),
        "budget": asdict(job.budget) | {"allowed": job.allowed},
        "host": machine | {"warnings": host.warnings(machine)},
        "baseline": trial_id_of_baseline(job),
        "best": chosen(job, done),
        "best_effort": best_effort(job, done),
        "verdict": verdict(job, done),
        "confirm": confirmation(job, done),
        "pareto": pareto(done.trials),
        "trials": [trial_json(trial, job.target.batch) for trial in done.trials],
        "refused": [dict(entry) for entry in refused],
        "warnings": list(job.notes),
    }


def task_facts(job: Job) -> dict[str, Any]:
    facts = facts_of(job.origin, job.signature, job.example)
    splits: dict[str, Split] = {
        name: getattr(job.splits, name) for name in ("calibrate", "select", "confirm")
    }
    return {
        "name": job.name,
        "model": type(job.origin.model).__name__ if job.origin.model is not None else str(job.origin.path),
        "score": job.score.name,
        "higher_is_better": job.score.higher_is_better,
        "share": job.score.share,
        "labels": not job.score.reference,
        "splits": {name: len(split) for name, split in splits.items()},
        "notes": list(job.notes),
        "parameters": facts.parameters,
        "macs": facts.macs,
        "sparsity": facts.sparsity,
        "size_bytes": facts.size_bytes,
        "classes": list(job.classes) or None,
        "inputs": [asdict(port) for port in job.signature.inputs],
        "outputs": [asdict(port) for port in job.signature.outputs],
    }


def chosen(job: Job, done: Conclusion) -> str | None:
    """The best trial's id; None when that is the baseline, for then nothing was gained."""
    return done.best if done.best != trial_id_of_baseline(job) else None


def best_effort(job: Job, done: Conclusion) -> str | None:
    """When nothing was chosen: the measured trial that lost least."""
    others = [t for t in by_latency(done.trials) if t.id != trial_id_of_baseline(job)]
    if chosen(job, done) or not others:
        return None
    return min(others, key=lost).id


def lost(trial: Trial) -> float:
    found = trial.measurement
    return found.quality.drop if found and found.quality else math.inf


def confirmation(job: Job, done: Conclusion) -> dict[str, Any] | None:
    if done.confirmed is None and not done.looks:
        return None
    before = float(job.outcomes(job.reference["confirm"], "confirm").mean())
    return {
        "trial": done.best,
        "quality": dict_or_none(done.confirmed),
        "baseline_value": before,
        "looks": list(done.looks),
    }


def verdict(job: Job, done: Conclusion) -> dict[str, Any]:
    """Exit code and headline: 0 budget met, 3 nothing met it, 5 too noisy to decide."""
    base, best = trial_id_of_baseline(job), chosen(job, done)
    trial = next((t for t in done.trials if t.id == best), None)
    if trial is not None and trial.measurement:
        how = gained(trial, next(t for t in done.trials if t.id == base), job.budget.objective)
        return {
            "exit_code": 0,
            "headline": f"{trial.recipe}: {how}, within the accuracy budget",
            "detail": same_runtime_words(trial),
        }
    undecided = [
        t
        for t in done.trials
        if t.measurement and t.measurement.quality and t.measurement.quality.verdict == "undecided"
    ]
    unsure = undecided or any(look["verdict"] == "undecided" for look in done.looks)
    if unsure:
        return {
            "exit_code": 5,
            "headline": "too few samples to decide: the original is kept",
            "detail": f"{len(undecided)} candidate(s) could not be told from the budget; give more samples",
        }
    kept = any(t.kept and t.id != base for t in done.trials)
    return {
        "exit_code": 3,
        "headline": f"nothing {'faster ' if kept else ''}met the budget: the original is kept",
        "detail": fastest_words(done) or unmeasured_words(done),
    }


def gained(trial: Trial, base: Trial, objective: Objective) -> str:
    """What was asked for, in words."""
    mine, theirs = trial.measurement, base.measurement
    if objective == "latency" or not (mine and theirs and mine.timing and theirs.timing):
        return f"{mine.speedup.ratio:.3g}x as fast as the original" if mine and mine.speedup else "chosen"
    if objective == "size":
        return f"1/{theirs.size_bytes / mine.size_bytes:.3g} of the original's size"
    less = theirs.timing.peak_memory_bytes / mine.timing.peak_memory_bytes
    return f"1/{less:.3g} of the original's memory"


def same_runtime_words(trial: Trial) -> str:
    same = trial.measurement.speedup_same_runtime if trial.measurement else None
    if same is None or same.verdict == "baseline":
        return ""
    interval = f"[{same.low:.3g}, {same.high:.3g}]"
    return f"{same.ratio:.3g}x {interval} against FP32 in the same runtime: {same.verdict}"


def fastest_words(done: Conclusion) -> str:
    ahead = next((t for t in by_latency(done.trials) if not t.kept), None)
    return f"the fastest candidate, {ahead.recipe}, was rejected: {ahead.reason}" if ahead else ""


def unmeasured_words(done: Conclusion) -> str:
    """What is within the budget and could not be timed here is named, and never chosen."""
    found = [t.recipe for t in done.trials if t.kept and t.measurement and t.measurement.timing is None]
    return f"within the budget and not measured on this host: {', '.join(found)}" if found else ""
