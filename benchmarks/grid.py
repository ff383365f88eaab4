"""Every runtime x precision on real networks: the tables of the main job.

    python -m benchmarks.grid --networks mnist fashion --batches 1 64

Writes one Markdown table a network and batch into benchmarks/results/; the runs with their reports stay
under karui-runs. Needs ``make data`` and the
checkpoints (``python -m benchmarks.networks.train``).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from benchmarks.networks import tasks

import karui
from karui.bench.rounds import Pace
from karui.optimize import Settings
from karui.report.markdown import markdown

RESULTS = Path(__file__).parent / "results"
RUNS = Path("karui-runs")
FINAL = Pace(least=30, most=200, seconds=20.0, openings=5, most_openings=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["mnist", "fashion"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--seconds", type=float, help="leave the rows out that come after this time")
    args = parser.parse_args()
    for name in args.networks:
        for batch in args.batches:
            path = RESULTS / f"grid_{name}_batch{batch}.md"
            path.write_text(measured(name, batch, args.seconds), encoding="utf-8")
            print(path, flush=True)


def measured(name: str, batch: int, seconds: float | None) -> str:
    command = f"python -m benchmarks.grid --networks {name} --batches {batch}"
    folder = RUNS / f"grid_{name}_batch{batch}"
    shutil.rmtree(folder, ignore_errors=True)
    result = karui.optimize(
        tasks.task(name),
        karui.Target("cpu", batch=batch),
        budget=karui.Budget(max_drop=0.5, time_s=seconds),
        out=folder,
        settings=Settings(command=command, pace=Pace(most=80, seconds=5.0), final=FINAL),
    )
    return markdown(result.facts)


if __name__ == "__main__":
    main()
