"""The tables: a row for each way of each tool, and karui's best against the best of all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers._given import MAX_DROP, THREADS
from benchmarks.peers._measure import EAGER, KARUI, Entry, entries, lost, score_all, time_all

from karui.bench.machine import HERE

COLUMNS = (
    "tool", "what it made", "points lost", "over eager", "karui's best over it", "bytes", "tool, s",
    "of CPU, s", "lines", "outcome",
)  # fmt: skip
SUMMARY = ("task", "karui", "against", "tool", "speed", "bytes, karui's", "its", "size", "outcome")


def show(runs: Path, tasks: Sequence[str]) -> None:
    print("# karui beside its peers\n")
    print(HEAD.format(cpu=HERE.identity()["cpu"], threads=THREADS, drop=MAX_DROP))
    compared: list[list[str]] = []
    for task in tasks:
        score_all(runs, task)
        found, times = entries(runs, task), time_all(runs, task)
        base = next(entry for entry in found if entry.name == EAGER)
        print(f"## {task}\n")
        print(f"Eager: {base.score['accuracy']:.2f} % of {base.score['samples']:,} test samples, ", end="")
        print(f"{1e3 * times['p50_s'][EAGER]:.3f} ms a call. {times['rounds']} rounds.\n")
        print_table(COLUMNS, (row(entry, base, times) for entry in found))
        compared += summary(task, found, base, times)
    print("## karui against the best of all others\n")
    print_table(SUMMARY, compared)


HEAD = """{cpu}; {threads} thread, batch 1, 95 % intervals; above 1 is faster.
Held: at most {drop:g} point lost on all test samples, by the artifact's own answers. Bytes: what has to be
shipped. Lines: those with code that a user of the tool writes when the model and the data are loaded, counted
in benchmarks/peers. Seconds: of the tool alone; those of the CPU depend little on what else was running.
"""


def row(entry: Entry, base: Entry, times: dict[str, Any]) -> list[str]:
    tool, _, made = entry.name.partition(".")
    found, score = entry.row, entry.score
    spent = [str(found.get("seconds", "")), str(found.get("cpu_seconds", "")), str(found.get("lines", ""))]
    if failure := found.get("error") or score.get("error"):
        return [tool, made, "", "", "", "", *spent, f"failed: {cell(failure)}"]
    if "accuracy" not in score:
        return [tool, made, "", "", "", "", *spent, "not scored"]
    ratios = times["ratios"]
    over_it = ratios.get(KARUI, {}).get(entry.name)
    size = f"{score['size_bytes']:,}"
    cells = [f"{lost(entry, base):.2f}", words(ratios.get(entry.name, {}).get(EAGER)), words(over_it), size]
    return [tool, made, *cells, *spent, outcome(entry, base, times)]


def outcome(entry: Entry, base: Entry, times: dict[str, Any]) -> str:
    if entry.name in times["failed"]:
        return f"failed: {cell(times['failed'][entry.name])}"
    return "held" if lost(entry, base) <= MAX_DROP + 1e-9 else "lost too much: not timed"


def words(ratio: Sequence[Any] | None) -> str:
    return f"{ratio[0]:.2f}x [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else "-"


def cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def summary(task: str, found: Sequence[Entry], base: Entry, times: dict[str, Any]) -> Iterator[list[str]]:
    """karui's artifacts against the fastest and the smallest of all others that held the accuracy."""
    p50 = times["p50_s"]
    timed = [entry for entry in found if entry.name in p50 and entry.name not in times["failed"]]
    others = [entry for entry in timed if not entry.name.startswith("karui.")]
    fastest = min(others, key=lambda entry: p50[entry.name])
    smallest = min(others, key=lambda entry: entry.score["size_bytes"])
    for mine in timed:
        if mine.name.startswith("karui."):
            for word, other in (("the fastest", fastest), ("the smallest", smallest)):
                ratio = times["ratios"][mine.name][other.name]
                yield [task, mine.name.partition(".")[2], word, other.name, *against(mine, other, ratio)]


def against(mine: Entry, other: Entry, ratio: Sequence[Any]) -> list[str]:
    here, there = mine.score["size_bytes"], other.score["size_bytes"]
    speed = {"faster": "faster", "slower": "LOSS: slower"}.get(ratio[3], "equally fast")
    size = "smaller" if here < there else "LOSS: larger" if here > there else "equally small"
    return [words(ratio), f"{here:,}", f"{there:,}", f"1/{there / here:.2f}", f"{speed}, {size}"]


def print_table(columns: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> None:
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for one in rows:
        print(f"| {' | '.join(one)} |", flush=True)
    print()
