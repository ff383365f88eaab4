"""Every runtime in every precision on four kinds of network, measured or with its reason.

    python -m benchmarks.targets > benchmarks/results/targets.md

Speeds are of the machine that runs this, at batch 1 on one thread, in 95 % intervals.
Needs ``make data`` and the checkpoints (``python -m benchmarks.networks.train``).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.networks import tasks

import karui
from karui import host, runtimes
from karui.bench.rounds import Pace
from karui.numerics import PRECISIONS
from karui.optimize import Settings

NETWORKS = ("mnist", "fashion", "encoder", "lstm")
RUNTIMES = tuple(runtimes.names())
COLUMNS = (
    "network", "runtime", "precision", "vs eager", "vs FP32, same runtime", "size", "points lost",
    "conv and linear MACs in INT8", "outcome",
)  # fmt: skip
TRIAL = Pace(least=6, most=20, seconds=1.5)
FINAL = Pace(least=12, most=60, seconds=6.0, openings=3, most_openings=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES))
    args = parser.parse_args()
    facts = host.facts()
    print("# Every runtime in every precision\n")
    print(f"{facts['cpu']}, {', '.join(facts['flags'])}; one thread, batch 1. Ratios above 1 are faster.\n")
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|---|{'--:|' * (len(COLUMNS) - 4)}---|")
    for name in args.networks:
        for line in rows(name, args.runtimes):
            print(line, flush=True)


def rows(name: str, wanted: Sequence[str]) -> Iterator[str]:
    """One line a runtime and precision, in the order asked."""
    recipes = tuple(f"{precision}@{runtime}" for runtime in wanted for precision in PRECISIONS)
    with tempfile.TemporaryDirectory() as scratch:
        result = karui.optimize(
            tasks.task(name),
            karui.Target("all"),
            budget=karui.Budget(max_drop=100),
            out=Path(scratch) / "run",
            settings=Settings(recipes=recipes, pace=TRIAL, final=FINAL, mixed=0),
        )
    found = {trial["recipe"]: trial for trial in result.facts["trials"]}
    refused = {entry["recipe"]: entry for entry in result.facts["refused"]}
    print(name, {recipe: trial["reason"] for recipe, trial in found.items()}, file=sys.stderr, flush=True)
    for recipe in recipes:
        precision, _, runtime = recipe.partition("@")
        cells = (
            measured(found[recipe]) if recipe in found else ["", "", "", "", "", refused[recipe]["reason"]]
        )
        yield f"| {name} | {runtime} | {precision} | {' | '.join(cells)} |"


def measured(trial: Mapping[str, Any]) -> list[str]:
    quality, size, executed = trial["quality"], trial["size_bytes"], trial["executed"] or {}
    share = executed.get("int8_macs")
    return [
        ratio(trial["speedup"]),
        ratio(trial["speedup_same_runtime"]),
        f"{size / 1024:.0f} KiB" if size else "",
        f"{100 * quality['drop']:.2f}" if quality else "",
        f"{share:.1%}" if share is not None else "",
        outcome(trial),
    ]


def ratio(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    return f"{found['ratio']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"


def outcome(trial: Mapping[str, Any]) -> str:
    """Status words are never merged: how it was verified, and what came of it."""
    verified, told = (trial["verification"] or {}).get("status", ""), f"{trial['status']}: {trial['reason']}"
    return told if not verified or verified in told else f"{verified}; {told}"


if __name__ == "__main__":
    main()
