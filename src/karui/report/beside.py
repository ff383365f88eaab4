"""The comparison of runs for people: plain lines and Markdown."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from karui.report import fields, words
from karui.report.between import Line, compare, lines
from karui.report.fields import Json
from karui.report.markdown import code, line, safe
from karui.report.rows import MARKS, tone
from karui.report.text import aligned, wrap
from karui.report.view import Run, read

Results = Sequence[tuple[str, Json]]
RUN_NAMES = string.ascii_uppercase
LONGEST = 60  # letters of a recipe
NAMED = 6  # recipes that one line lists


@dataclass(frozen=True)
class Cells:
    """One run's row of one recipe, in words."""

    recipe: str
    run: str
    mark: str
    numbers: tuple[str, ...]
    changes: str


def text(results: Results, width: int | None = None) -> str:
    """The runs, what differs between them, and a table with one row for each recipe and run."""
    facts, found = compare(results), cells(results)
    table = [
        headers(results),
        *((fields.clip_middle(c.recipe, LONGEST), c.run, *c.numbers, f"{c.mark} {c.changes}") for c in found),
    ]
    body = aligned(table)
    if width is not None and max(map(len, body)) > width:
        body = [made for cell in found for made in paragraph(cell, headers(results), width)]
    head = [made for part in heading(facts) for made in wrap(part, width)]
    tail = [made for part in only(results) for made in wrap(part, width)]
    return "\n".join(made.rstrip() for made in [*head, "", *body, "", *tail]).rstrip() + "\n"


def paragraph(cell: Cells, titles: tuple[str, ...], width: int) -> list[str]:
    pairs = zip(titles[2:], cell.numbers)
    told = " · ".join(f"{title} {value}" for title, value in pairs if value != words.NONE)
    first = wrap(cell.recipe, width) if cell.recipe else []
    said = f"{cell.run} {cell.mark} {told}" + (f" · {cell.changes}" if cell.changes else "")
    return [*first, *wrap(said, width, indent="  ")]


def markdown(results: Results) -> str:
    """The same in GitHub's Markdown."""
    facts, titles = compare(results), headers(results)
    rule = ["---", "---", *["--:"] * (len(titles) - 3), "---"]
    rows = [
        [code(c.recipe), c.run, *map(safe, c.numbers), safe(f"{c.mark} {c.changes}".strip())]
        for c in cells(results)
    ]
    head = "\n".join(f"- {safe(part)}" for part in heading(facts))
    table = "\n".join(map(line, [[*map(safe, titles)], rule, *rows]))
    tail = "\n".join(f"- {safe(part)}" for part in only(results))
    return "\n\n".join(part for part in (head, table, tail) if part) + "\n"


def heading(facts: dict[str, Any]) -> list[str]:
    """Which runs, what differs, what that means for their times, and whether the choice changed."""
    runs = zip(RUN_NAMES, fields.objects(facts, "runs"))
    found = [f"{name}: {fields.text(run, 'name')}: {fields.text(run, 'headline')}" for name, run in runs]
    for name, values in facts["differences"].items():
        told = "; ".join(f"{run} {value or words.NONE}" for run, value in zip(RUN_NAMES, values))
        found.append(f"Different {name}: {told}.")
    return [*found, comparable(facts), best_words(facts["best"])]


def comparable(facts: dict[str, Any]) -> str:
    """What a difference in the table may be read as."""
    seconds = "were taken under like conditions" if facts["times_comparable"] else "cannot be compared"
    told = f"Seconds of these runs {seconds}; speed-ups and losses are against each run's own original."
    other = facts["differences"].keys() & {"score", "data"}
    return told + (" Losses were measured on other data." if other else "")


def only(results: Results) -> list[str]:
    """Recipes that one run alone has, for each run."""
    alone = [found for found in lines([read(result) for _, result in results]) if count(found) == 1]
    told = []
    for i, name in enumerate(RUN_NAMES[: len(results)]):
        recipes = [fields.clip_middle(found.recipe, LONGEST) for found in alone if found.trials[i]]
        more = [f"{len(recipes) - NAMED} more"] if len(recipes) > NAMED else []
        told += [f"Only in {name}: {', '.join([*recipes[:NAMED], *more])}."] if recipes else []
    return told


def count(found: Line) -> int:
    """In how many runs it is."""
    return sum(trial is not None for trial in found.trials)


def best_words(best: list[str | None]) -> str:
    if len(set(best)) == 1:
        return f"The best is the same: {best[0]}." if best[0] else "No run has a best."
    told = "; ".join(f"{run} {recipe or 'none'}" for run, recipe in zip(RUN_NAMES, best))
    return f"The best changed: {told}."


def headers(results: Results) -> tuple[str, ...]:
    runs = [read(result) for _, result in results]
    score = words.score_name(runs[0]) + (" %" if runs[0].points else "")
    return ("recipe", "run", "size", "latency p50", "vs its original", score, "verdict, change")


def cells(results: Results) -> list[Cells]:
    runs = [read(result) for _, result in results]
    unit = words.time_unit(trial.p50_s for run in runs for trial in run.trials)
    best = {run.best.recipe for run in runs if run.best}
    shown = [found for found in lines(runs) if count(found) > 1 or found.recipe in best]
    return [cell for found in shown for cell in cells_of(found, runs, unit)]


def cells_of(found: Line, runs: Sequence[Run], unit: words.TimeUnit) -> list[Cells]:
    made: list[Cells] = []
    for name, run, trial, changes in zip(RUN_NAMES, runs, found.trials, found.changes):
        recipe = "" if made else found.recipe
        if trial is None:
            told = "not there" if not changes else ", ".join(changes)
            made.append(Cells(recipe, name, words.NONE, (words.NONE,) * 4, told))
            continue
        quality = trial.quality
        score = (
            f"{words.score(run, quality.value)} {words.change(run, quality)}".strip()
            if quality
            else words.NONE
        )
        speed = " ".join(words.speed(trial.speedup)).strip()
        numbers = (words.size(trial.size_bytes), unit(trial.p50_s), speed, score)
        made.append(Cells(recipe, name, MARKS[tone(run, trial)], numbers, ", ".join(changes)))
    return made
