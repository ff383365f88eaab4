"""The whole zoo and a thousand random networks: cut against masked, with Torch-Pruning as control.

python -m benchmarks.zoo.sweep > benchmarks/results/zoo.md

Outcomes are kept in ``--journal``; a run that was stopped goes on from there. The control takes part where it
is installed (see benchmarks/zoo/control.py).
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from benchmarks.zoo import CASES, built, control
from benchmarks.zoo.case import Case
from benchmarks.zoo.exact import Outcome, Prepared, prepare, pruned, with_values
from benchmarks.zoo.random_networks import random_case

RATIOS = (0.2, 0.5, 0.75)
HEADS = ("dims", "whole")
CONTROL_RATIO, CONTROL_SEED = 0.5, 0
VERDICTS = ("right", "inexact", "leaves", "untouched", "ties", "WRONG", "crash", "hang")
INTRODUCTION = f"""# Cut = masked

Each model is pruned at random and compared, on fresh inputs, with the uncut model whose removed slices are
zero. Exact: at most 1e-5 of the largest answer. Reached: every group of units within 5 points of the ratio,
or within one set that can only go together. Ratios {RATIOS}; the random networks take them in turn.
"""
KARUI = "| theme | models | runs | exact | reached | nothing may go | refused | WRONG | largest error |"
PEER = f"""
## Torch-Pruning 1.6.1, ratio {CONTROL_RATIO}, one seed

Random importance, the output layers excluded and the numbers of heads given for it. Right: at most 1e-3 of
the largest answer from the model masked where it removed numbers, and nothing that karui narrows left wide.
Inexact: wrong where no cut can be exact (LayerNorm, GroupNorm, softmax over the units), with no word of it.
Leaves: right, but weights that karui narrows are left as they were. Hang: more than {control.LIMIT_S:.0f} s.
"""


class Journal:
    """One JSON line an outcome: [key, value]."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known: dict[tuple[Any, ...], Any] = {tuple(key): value for key, value in map(json.loads, lines)}

    def add(self, key: tuple[Any, ...], value: Any) -> None:
        self.known[key] = value
        with self.path.open("a") as file:
            print(json.dumps([key, value]), file=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--random", type=int, default=1000)
    parser.add_argument("--journal", type=Path, default=Path("zoo.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    journal = Journal(args.journal)
    for case in CASES:
        found = None
        for seed in range(args.seeds):
            ways = [(ratio, heads) for heads in HEADS for ratio in RATIOS]
            found = add_outcomes(journal, case, seed, ways, found)
        print(case.name, file=sys.stderr, flush=True)
    if importlib.util.find_spec("torch_pruning"):
        add_control(journal)
    for seed in range(args.random):
        ratio = RATIOS[seed % len(RATIOS)]
        add_outcomes(journal, random_case(seed), seed, [(ratio, "dims")])
    print_tables(journal, args.seeds, args.random)


def add_outcomes(
    journal: Journal, case: Case, seed: int, ways: list[tuple[float, Any]], known: Prepared | None = None
) -> Prepared | None:
    """known: the case with the values of another seed, and its units, which are the same."""
    left = [(ratio, heads) for ratio, heads in ways if (case.name, seed, ratio, heads) not in journal.known]
    if not left:
        return known
    network = built(case, seed)
    found = (known and with_values(known, network)) or prepare(case, network)
    for ratio, heads in left:
        try:
            outcome = found if isinstance(found, Outcome) else pruned(found, ratio, seed, heads)
        except Exception as error:  # noqa: BLE001 - a crash is counted as wrong
            print(f"{case.name} {ratio} {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            outcome = Outcome("WRONG", error=float("inf"), why=str(error))
        journal.add((case.name, seed, ratio, heads), dataclasses.asdict(outcome))
    return found if isinstance(found, Prepared) else None


def add_control(journal: Journal) -> None:
    left = [case.name for case in CASES if ("control", case.name) not in journal.known]
    for name, *verdict in control.judged(left, CONTROL_RATIO, CONTROL_SEED):
        journal.add(("control", name), verdict)


def print_tables(journal: Journal, seeds: int, drawn: int) -> None:
    print(INTRODUCTION)
    print(KARUI)
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    themes = list(dict.fromkeys(case.theme for case in CASES))
    for theme in themes:
        print(row(theme, journal, [case for case in CASES if case.theme == theme], seeds, "dims"))
    print(row("**the zoo**", journal, CASES, seeds, "dims"))
    whole = {case.name: journal.known[case.name, 0, 0.5, "whole"] for case in CASES}
    attentive = [case for case in CASES if whole[case.name]["verdict"] in ("exact", "WRONG")]
    print(row("whole heads, of all themes", journal, attentive, seeds, "whole"))
    keys = [(f"random_{i}", i, RATIOS[i % len(RATIOS)], "dims") for i in range(drawn)]
    print(line("random networks", drawn, [Outcome(**journal.known[key]) for key in keys]))
    print_control(journal, themes)


def print_control(journal: Journal, themes: list[str]) -> None:
    """The cases that were judged: all, unless the run was stopped."""
    peer = {key[1]: value[0] for key, value in journal.known.items() if key[0] == "control"}
    if not peer:
        return
    print(PEER)
    print("| theme | judged | " + " | ".join(VERDICTS) + " |")
    print("|---|--:" + "|--:" * len(VERDICTS) + "|")
    for theme in [*themes, "**the zoo**"]:
        cases = [case.name for case in CASES if theme in (case.theme, "**the zoo**")]
        count = collections.Counter(peer[name] for name in cases if name in peer)
        cells = [f"{count.total()} of {len(cases)}", *(str(count[verdict]) for verdict in VERDICTS)]
        print(f"| {theme} | " + " | ".join(cells) + " |")


def row(name: str, journal: Journal, cases: Iterable[Case], seeds: int, heads: str) -> str:
    cases = list(cases)
    keys = [(case.name, seed, ratio, heads) for case in cases for seed in range(seeds) for ratio in RATIOS]
    return line(name, len(cases), [Outcome(**journal.known[key]) for key in keys])


def line(name: str, models: int, found: list[Outcome]) -> str:
    count = collections.Counter(outcome.verdict for outcome in found)
    reached = sum(outcome.reached for outcome in found if outcome.verdict == "exact")
    worst = max((outcome.error for outcome in found), default=0.0)
    return (
        f"| {name} | {models} | {len(found)} | {count['exact']} | {reached} | {count['nothing']} "
        f"| {count['refused']} | {count['WRONG']} | {worst:.1e} |"
    )


if __name__ == "__main__":
    main()
