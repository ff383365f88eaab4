"""Finished runs side by side: what changed, what is new, what has gone, and whether times can be compared.

A change is told only where two intervals lie apart: speed-ups and losses are each against the original of
their own run, so that they hold across machines; latencies in seconds do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from karui.report import fields, words
from karui.report.fields import Json
from karui.report.said import apart, loss
from karui.report.view import Quality, Run, Trial, read

SCHEMA = "karui.compare/1"
ALIKE = 0.01  # of two sizes: compressed files differ by a little from build to build
Fact = Callable[[Run], str]
# what makes the same recipe another measurement, and whether seconds can still be compared
CONDITIONS: dict[str, tuple[Fact, bool]] = {
    "machine": (lambda run: fields.text(run.data, "host", "cpu"), False),
    "cores": (lambda run: fields.text(run.data, "host", "cores"), False),
    "threads": (lambda run: fields.text(run.data, "target", "threads"), False),
    "batch": (lambda run: fields.text(run.data, "target", "batch"), False),
    "model": (lambda run: " ".join(model_of(run)), False),
    "original": (lambda run: run.baseline.recipe if run.baseline else "", False),
    "score": (lambda run: run.score, True),
    "data": (lambda run: data_of(run), True),
    "budget": (lambda run: words.budget(run), True),
    "versions": (lambda run: versions_of(run), True),
}


@dataclass(frozen=True)
class Line:
    """One recipe in every run; None where a run does not have it. ``changes``: against the first run."""

    recipe: str
    trials: tuple[Trial | None, ...]
    changes: tuple[tuple[str, ...], ...]


def compare(results: Sequence[tuple[str, Json]]) -> dict[str, Any]:
    """Facts about runs (name and document), the first as the reference (schema ``karui.compare/1``)."""
    runs = [read(result) for _, result in results]
    differing = differences(runs)
    return {
        "schema": SCHEMA,
        "runs": [run_json(name, run) for (name, _), run in zip(results, runs, strict=True)],
        "differences": differing,
        "times_comparable": not any(not CONDITIONS[name][1] for name in differing),
        "rows": [line_json(line, runs) for line in lines(runs)],
        "best": [run.best.recipe if run.best else None for run in runs],
        "best_changed": len({run.best.recipe if run.best else None for run in runs}) > 1,
    }


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Conditions that are not the same in all runs; what a run does not tell is no difference."""
    found = {name: [tell(run) for run in runs] for name, (tell, _) in CONDITIONS.items()}
    return {name: values for name, values in found.items() if len(set(values) - {""}) > 1}


def model_of(run: Run) -> list[str]:
    parameters = fields.number(run.data, "task", "parameters")
    named = fields.text(run.data, "task", "model")
    return [part for part in (named, f"{words.count(parameters)} parameters" if parameters else "") if part]


def data_of(run: Run) -> str:
    """Samples, and the score of the original on them: other data of the same size show there."""
    sizes = ", ".join(f"{name} {n}" for name, n in fields.pairs(run.data, "task", "splits"))
    base = run.baseline.quality.value if run.baseline and run.baseline.quality else None
    return (
        f"{sizes}; the original scores {words.full_score(run, base)}" if sizes and base is not None else sizes
    )


def versions_of(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in fields.pairs(run.data, "host", "versions"))


# --- recipes


def lines(runs: Sequence[Run]) -> list[Line]:
    """Recipes as the first run ranks them, then those that only later runs have."""
    ordered = [trial for run in runs for trial in sorted(run.trials, key=lambda t: place(run, t))]
    found = []
    for recipe in dict.fromkeys(trial.recipe for trial in ordered):
        trials = tuple(next((t for t in run.trials if t.recipe == recipe), None) for run in runs)
        changes = tuple(
            changed(runs[0], trials[0], run, trial) for run, trial in zip(runs, trials, strict=True)
        )
        found.append(Line(recipe, trials, ((), *changes[1:])))
    return found


def place(run: Run, trial: Trial) -> tuple[bool, bool, float]:
    return trial is not run.baseline, trial is not run.best, -(trial.speedup.ratio if trial.speedup else 0.0)


def changed(first: Run, one: Trial | None, run: Run, other: Trial | None) -> tuple[str, ...]:
    """What is surely different in ``other``, as words."""
    if one is None or other is None:
        return ("new",) if other else ("gone",) if one else ()
    found = [
        *(["now best"] if other is run.best and one is not first.best else []),
        *(["no longer best"] if one is first.best and other is not run.best else []),
        *([f"{one.status} → {other.status}"] if one.status != other.status else []),
        *speed_change(first, one, run, other),
        *size_change(one, other),
        *(score_change(one.quality, other.quality) if first.score == run.score else []),
    ]
    return tuple(found)


def speed_change(first: Run, one: Trial, run: Run, other: Trial) -> list[str]:
    """Ratios to each run's own original, which for the original itself say nothing."""
    mine, theirs = one.speedup, other.speedup
    if one is first.baseline or other is run.baseline or not mine or not theirs or not apart(mine, theirs):
        return []
    return ["faster" if theirs.ratio > mine.ratio else "slower"]


def size_change(one: Trial, other: Trial) -> list[str]:
    if not one.size_bytes or not other.size_bytes:
        return []
    share = other.size_bytes / one.size_bytes
    return [] if abs(share - 1) <= ALIKE else ["smaller" if share < 1 else "larger"]


def score_change(one: Quality | None, other: Quality | None) -> list[str]:
    """Losses against each run's own original."""
    if one is None or other is None or None in (one.low, one.high, other.low, other.high):
        return []
    if other.low > one.high:  # type: ignore[operator]
        return ["loses more"]
    return ["loses less"] if other.high < one.low else []  # type: ignore[operator]


# --- as JSON


def run_json(name: str, run: Run) -> dict[str, Any]:
    told = {key: tell(run) for key, (tell, _) in CONDITIONS.items()}
    created = fields.text(run.data, "created")
    return {"name": name, "created": created, "headline": run.headline, "conditions": told}


def line_json(line: Line, runs: Sequence[Run]) -> dict[str, Any]:
    cells = [
        None if trial is None else cell_json(run, trial, changes)
        for run, trial, changes in zip(runs, line.trials, line.changes, strict=True)
    ]
    return {"recipe": line.recipe, "cells": cells, "changes": [list(changes) for changes in line.changes]}


def cell_json(run: Run, trial: Trial, changes: Sequence[str]) -> dict[str, Any]:
    keys = ("id", "status", "reason", "size_bytes", "speedup")
    quality = trial.quality
    return {
        **{key: trial.data.get(key) for key in keys},
        "latency_p50_s": trial.p50_s,
        "score": quality.value if quality else None,
        "loss": [quality.drop, quality.low, quality.high] if quality else None,
        "loss_words": loss(run, quality) if quality else None,
        "best": trial is run.best,
    }
