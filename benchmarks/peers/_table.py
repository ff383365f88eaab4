"""The tables: a row for each way of each tool, and karui's best against the best of all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers._given import MAX_DROP, THREADS
from benchmarks.peers._measure import EAGER, KARUI, Entry, baseline, entries, lost, score_all, time_all

from karui.bench.machine import HERE

COLUMNS = (
    "tool", "what it made", "points lost", "over eager", "karui's best over it", "bytes", "tool, s",
    "of CPU, s", "lines", "outcome",
)  # fmt: skip
FASTER, SMALLER = 1.5, 2.0  # times; what counts as much better
SUMMARY = ("task", "karui", "against", "tool", "speed", "bytes, karui's", "its", "size", "outcome")


def show(runs: Path, tasks: Sequence[str]) -> None:
    print("# karui beside its peers\n")
    print(HEAD.format(cpu=HERE.identity()["cpu"], threads=THREADS, drop=MAX_DROP))
    pairs: list[tuple[Match, Match]] = []
    for task in tasks:
        score_all(runs, task)
        found, times = entries(runs, task), time_all(runs, task)
        base = baseline(found)
        print(f"## {task}\n")
        print(f"Eager: {base.score['accuracy']:.2f} % of {base.score['samples']:,} test samples, ", end="")
        print(f"{1e3 * times['p50_s'][EAGER]:.3f} ms a call. {times['rounds']} rounds.\n")
        print_table(COLUMNS, (row(entry, base, times) for entry in found))
        pairs += matches(task, found, times)
    print("## karui against the best of all others\n")
    print_table(SUMMARY, summary(pairs))
    print(count(pairs))


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


@dataclass(frozen=True)
class Match:
    """An artifact of karui against another that held. ratio: how much faster, low, high, verdict."""

    task: str
    mine: Entry
    other: Entry
    ratio: Sequence[Any]

    @property
    def smaller(self) -> float:
        return float(self.other.score["size_bytes"] / self.mine.score["size_bytes"])

    @property
    def cells(self) -> list[str]:
        speed = {"faster": "faster", "slower": "LOSS: slower"}.get(self.ratio[3], "equally fast")
        size = "smaller" if self.smaller > 1 else "LOSS: larger" if self.smaller < 1 else "equally small"
        sizes = [f"{entry.score['size_bytes']:,}" for entry in (self.mine, self.other)]
        return [words(self.ratio), *sizes, f"1/{self.smaller:.2f}", f"{speed}, {size}"]


def matches(task: str, found: Sequence[Entry], times: dict[str, Any]) -> Iterator[tuple[Match, Match]]:
    """Each of karui's artifacts against the fastest and the smallest of all others."""
    p50 = times["p50_s"]
    timed = [entry for entry in found if entry.name in p50 and entry.name not in times["failed"]]
    others = [entry for entry in timed if not is_karuis(entry)]
    fastest = min(others, key=lambda entry: p50[entry.name])
    smallest = min(others, key=lambda entry: entry.score["size_bytes"])
    for mine in filter(is_karuis, timed):
        ratios = times["ratios"][mine.name]
        yield (
            Match(task, mine, fastest, ratios[fastest.name]),
            Match(task, mine, smallest, ratios[smallest.name]),
        )


def is_karuis(entry: Entry) -> bool:
    return entry.name.startswith("karui.")


def summary(pairs: Sequence[tuple[Match, Match]]) -> Iterator[list[str]]:
    for pair in pairs:
        for word, match in zip(("the fastest", "the smallest"), pair):
            yield [match.task, match.mine.name.partition(".")[2], word, match.other.name, *match.cells]


def count(pairs: Sequence[tuple[Match, Match]]) -> str:
    """How often karui's best by its defaults is as good as the best of others, and how often much better."""
    mine = [pair for pair in pairs if pair[0].mine.name == KARUI]
    as_good = sum(fast.ratio[3] != "slower" and small.smaller >= 1 for fast, small in mine)
    better = sum(fast.ratio[0] >= FASTER or small.smaller >= SMALLER for fast, small in mine)
    return (
        f"karui's best by its defaults: as fast as the fastest and as small as the smallest, or more, "
        f"on {as_good} of {len(mine)} tasks; {FASTER:g}x faster or {SMALLER:g}x smaller on {better}."
    )


def print_table(columns: Sequence[str], rows: Iterator[list[str]]) -> None:
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for one in rows:
        print(f"| {' | '.join(one)} |", flush=True)
    print()
