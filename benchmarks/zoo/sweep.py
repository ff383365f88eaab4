"""The whole zoo and a thousand random networks: three seeds, three ratios, cut against masked.

python -m benchmarks.zoo.sweep > benchmarks/results/zoo.md
"""

from __future__ import annotations

import argparse
import collections
import sys

import torch
from benchmarks.zoo import CASES, built
from benchmarks.zoo.case import Case
from benchmarks.zoo.exact import Outcome, check
from benchmarks.zoo.random_networks import random_case

RATIOS = (0.2, 0.5, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--random", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("# Cut = masked\n")
    print("Each model is pruned at random and compared, on fresh inputs, with the uncut model whose removed ")
    print(
        "slices are zero. Exact: at most 1e-5 of the largest answer. Reached: every group of units within 5 "
    )
    print("points of the ratio, or within one set that can only go together.\n")
    print("| theme | models | runs | exact | reached | nothing may go | refused | WRONG | largest error |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    themes: dict[str, list[Outcome]] = {}
    for case in CASES:
        for seed in range(args.seeds):
            for ratio in RATIOS:
                themes.setdefault(case.theme, []).append(one(case, ratio, seed))
        print(case.name, file=sys.stderr, flush=True)
    for theme, found in themes.items():
        print(row(theme, sum(case.theme == theme for case in CASES), found), flush=True)
    every = [outcome for found in themes.values() for outcome in found]
    print(row("**the zoo**", len(CASES), every), flush=True)
    drawn = [one(random_case(seed), RATIOS[seed % 3], seed) for seed in range(args.random)]
    print(row("random networks", args.random, drawn))


def one(case: Case, ratio: float, seed: int) -> Outcome:
    try:
        return check(case, built(case, seed), ratio, seed)
    except Exception as error:  # noqa: BLE001 - a crash is counted as wrong
        print(f"{case.name} {ratio} {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return Outcome("WRONG", error=float("inf"), why=str(error))


def row(name: str, models: int, found: list[Outcome]) -> str:
    count = collections.Counter(outcome.verdict for outcome in found)
    reached = sum(outcome.reached for outcome in found if outcome.verdict == "exact")
    worst = max((outcome.error for outcome in found), default=0.0)
    return (
        f"| {name} | {models} | {len(found)} | {count['exact']} | {reached} | {count['nothing']} "
        f"| {count['refused']} | {count['WRONG']} | {worst:.1e} |"
    )


if __name__ == "__main__":
    main()
