"""Goals in latency: asked, guessed, predicted, timed on the way, and delivered in the final session.

    python -m benchmarks.latency > benchmarks/results/latency.md

Each network and runtime is one run with a fresh memory of timings: plain FP32 and two goals. Guessed: before
the chosen widths were timed; predicted: with all that was timed on the way, they among it. Delivered: share
of the latency of FP32 in the same runtime, both timed side by side at the end; the score's fall is on the
selection split.
Needs ``make data`` and the checkpoints (``python -m benchmarks.networks.train``).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.networks import tasks

import karui
from karui.bench.rounds import Pace
from karui.optimize import Settings

RUNS = Path("karui-runs")
COLUMNS = (
    "network", "runtime", "asked", "guessed", "predicted", "timed", "delivered", "MACs", "points lost",
    "odd widths cost", "seconds",
)  # fmt: skip
TRIAL = Pace(most=40, seconds=3.0)
FINAL = Pace(least=25, most=200, seconds=20.0, openings=6, most_openings=12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["mnist", "fashion", "deep", "mlp", "encoder"])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino", "aot_inductor"])
    parser.add_argument("--goals", nargs="+", type=float, default=[0.75, 0.5])
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    print("# Goals in latency\n")
    print(
        f"Batch {args.batch}, one thread, FP32; shares are of the original's latency in the same runtime.\n"
    )
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|---|--:|")
    for name in args.networks:
        for runtime in args.runtimes:
            for line in measured(name, runtime, args.goals, args.batch):
                print(line, flush=True)


def measured(name: str, runtime: str, goals: list[float], batch: int) -> list[str]:
    recipes = [f"prune_channels:latency={goal} + fp32@{runtime}" for goal in goals]
    folder = RUNS / f"latency_{name}_{runtime}"
    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as memory:
        os.environ["XDG_CACHE_HOME"] = memory
        result = karui.optimize(
            tasks.task(name),
            karui.Target("cpu", batch=batch),
            budget=karui.Budget(max_drop=100),
            out=folder,
            settings=Settings(recipes=(f"fp32@{runtime}", *recipes), pace=TRIAL, final=FINAL),
        )
    taken = (time.monotonic() - start) / len(goals)
    print(name, runtime, f"{taken:.0f} s a goal", file=sys.stderr, flush=True)
    trials = {trial["recipe"]: trial for trial in result.facts["trials"]}
    return [row(name, runtime, goal, trials[recipe], taken) for goal, recipe in zip(goals, recipes)]


def row(name: str, runtime: str, goal: float, trial: dict[str, Any], taken: float) -> str:
    start = f"| {name} | {runtime} | {goal} |"
    if trial["status"] == "failed":
        return f"{start} {trial['reason']} | | | | | | | {taken:.0f} |"
    facts = next(iter(trial["executed"]["steps"].values()))
    looked, speed = facts["latency"], trial["speedup_same_runtime"]
    timed = f"{looked['share']:.2f} [{looked['low']:.2f}, {looked['high']:.2f}]"
    delivered = f"{1 / speed['ratio']:.2f} [{1 / speed['high']:.2f}, {1 / speed['low']:.2f}]"
    before, after = facts["macs"]
    stairs = ", ".join(f"of {step} +{cost:.0%}" for step, cost in facts["stairs"].items()) or "nothing"
    return (
        f"{start} {looked['guessed']:.2f} | {looked['predicted']:.2f} | {timed} | {delivered} "
        f"| {after / before:.2f} | {100 * trial['quality']['drop']:.2f} | {stairs} | {taken:.0f} |"
    )


if __name__ == "__main__":
    main()
