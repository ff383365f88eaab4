"""Two bench runs while another process keeps one core busy must agree within their intervals.

    python benchmarks/busy.py --repeats 5 > benchmarks/results/busy.md

A row is one artifact's ratio to eager. Two runs agree in a row when their 95 % intervals overlap.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

from karui import api
from karui.bench.compare import compare
from karui.bench.machine import Conditions
from karui.bench.rounds import Pace
from karui.demo import task
from karui.optimize import Settings
from karui.process import Limits

RECIPES = (
    "fp32@torch_eager",
    "fp32@torchscript",
    "fp32@onnxruntime",
    "int8@onnxruntime",
    "int8_dynamic@onnxruntime",
    "fp16@onnxruntime",
    "fp32@openvino",
    "int8@openvino",
)


def spin() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "run"
        result = api.optimize(task(), out=home, settings=Settings(recipes=RECIPES))
        folders = [home / t["artifact"] for t in result.facts["trials"] if t["status"] != "failed"]
        busy = multiprocessing.Process(target=spin, daemon=True)
        busy.start()
        try:
            runs = [
                compare(
                    folders,
                    Conditions(limits=Limits(120)),
                    Pace(least=25, most=120, seconds=20.0, openings=5, most_openings=10),
                    seed,
                )
                for seed in range(2 * args.repeats)
            ]
        finally:
            busy.terminate()
    report(runs)


def report(runs: list[list[dict]]) -> None:
    print("# Two bench runs beside a busy process\n")
    print("Ratios to eager, batch 1, one thread, one core kept busy all the time.\n")
    print("| artifact | run | first | second | agree |")
    print("|---|---|---|---|---|")
    agreed = total = 0
    for number, (one, two) in enumerate(pairs(runs)):
        for a, b in zip(one[1:], two[1:]):
            x, y = a["speedup"], b["speedup"]
            same = x["low"] <= y["high"] and y["low"] <= x["high"]
            agreed, total = agreed + same, total + 1
            print(f"| {a['recipe']} | {number + 1} | {words(x)} | {words(y)} | {'yes' if same else 'NO'} |")
    print(f"\n{agreed} of {total} rows agree ({agreed / total:.1%}).")


def pairs(runs: list) -> list:
    return [(runs[i], runs[i + 1]) for i in range(0, len(runs), 2)]


def words(found: dict) -> str:
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


if __name__ == "__main__":
    main()
