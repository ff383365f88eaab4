"""The table for terminals (rich) and for pipes (plain lines)."""

from __future__ import annotations

import textwrap

from rich import box
from rich.table import Table
from rich.text import Text

from karui.report import fields, words
from karui.report.fields import Json
from karui.report.rows import MARKS, Cell, Row, headers, rows
from karui.report.view import Run, read, speed

STYLES = {
    "best": "bold green",
    "baseline": "bold",
    "kept": "",
    "effort": "bold yellow",
    "undecided": "yellow",
    "slower": "red",
    "over": "red",
    "rejected": "red",
    "failed": "red",
    "unfinished": "dim",
    "refused": "dim",
}
GAP = "  "


def table(result: Json) -> Table:
    """A rich table under its headline; the second line of a cell is its interval."""
    run = read(result)
    made = Table(
        title=Text(run.headline, style="bold"),
        caption=Text("\n".join(footnotes(run)), style="dim"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    made.add_column("")
    made.add_column("candidate", overflow="fold")
    for name in headers(run):
        made.add_column(name.replace(", ", ",\n"), justify="right")
    made.add_column("verdict", overflow="fold")
    for row in rows(run):
        made.add_row(*rich_cells(row))
    return made


def plain(result: Json, width: int | None = None) -> str:
    """Aligned columns, or one short paragraph a candidate when they do not fit ``width``."""
    run = read(result)
    found = rows(run)
    body = columns(run, found)
    if width is not None and max(map(len, body)) > width:
        body = [line for row in found for line in paragraph(run, row, width)]
    words_around = [line for part in (run.headline, about(run)) for line in wrap(part, width)]
    lines = [*words_around, "", *body, ""]
    lines += [line for part in footnotes(run) for line in wrap(part, width)]
    return "\n".join(line.rstrip() for line in lines).strip() + "\n"


def compared(facts: Json) -> str:
    """Artifacts side by side (schema ``karui.bench/1``), the first as the baseline."""
    found = fields.objects(facts, "rows")
    unit = words.time_unit(fields.number(row, "latency_s", "p50") for row in found)
    titles = ("", "candidate", "size", "latency p50", "vs first", "verdict")
    lines = aligned([titles, *(compared_cells(row, unit) for row in found)])
    return "\n".join(line.rstrip() for line in lines)


def compared_cells(row: Json, unit: words.TimeUnit) -> tuple[str, ...]:
    speedup = speed(fields.at(row, "speedup"))
    verdict = speedup.verdict if speedup else ""
    marks = {"baseline": MARKS["baseline"], "faster": MARKS["kept"], "slower": MARKS["slower"]}
    p50, p90 = (fields.number(row, "latency_s", key) for key in ("p50", "p90"))
    latency = unit(p50) + (f" (p90 {unit.number(p90)})" if p90 else "")
    size = words.size(fields.number(row, "size_bytes"))
    where = fields.text(row, "artifact")
    return (marks.get(verdict, ""), fields.text(row, "recipe"), size, latency,
            " ".join(words.speed(speedup)).strip(), f"{verdict}: {where}")  # fmt: skip


def rich_cells(row: Row) -> list[Text]:
    style = STYLES[row.tone]
    numbers = [rich_cell(cell) for cell in (row.size, row.latency, row.eager, row.same, row.score)]
    verdict = Text(", ".join((row.verdict, *row.tags)), style=style)
    if row.reason:
        verdict.append(f"\n{row.reason}", style="dim")
    return [Text(row.mark, style=style), Text(row.name, style=style), *numbers, verdict]


def rich_cell(cell: Cell) -> Text:
    """Value and change on one line, what belongs to them in brackets on the next."""
    change, bracket, interval = cell.note.partition("[")
    made = Text(cell.main if not bracket else f"{cell.main} {change}".strip())
    if cell.note:
        made.append(f"\n{bracket}{interval}" if bracket else f"\n{cell.note}", style="dim")
    return made


def about(run: Run) -> str:
    """The target and the budget, on one line."""
    target = fields.text(run.data, "target", "name")
    on = fields.text(run.data, "target", "on")
    facts = [f"target {target}" + (f" on {on}" if on else "")] if target else []
    for key, noun in (("batch", "batch"), ("threads", "threads")):
        value = fields.text(run.data, "target", key)
        facts += [f"{noun} {value}"] if value else []
    return " · ".join([*facts, f"budget: {words.budget(run)}"])


def footnotes(run: Run) -> list[str]:
    legend = "★ best  • baseline  ✓ kept  ✗ not kept  ? undecided  ! failed  ∅ not tried"
    return [line for line in (confirmation(run), legend) if line]


def confirmation(run: Run) -> str:
    """The score on samples the search never saw, as a sentence."""
    quality = run.confirmed
    if quality is None or quality.value is None:
        return ""
    change = words.change(run, quality)
    on = f" on {words.count(quality.n)} unseen samples" if quality.n else ""
    score = f"{words.score_name(run)} {words.full_score(run, quality.value)}"
    return f"confirmed{on}: {score}" + (f" ({change})." if change else ".")


def columns(run: Run, found: list[Row]) -> list[str]:
    table = [("", "candidate", *headers(run), "verdict")]
    table += [(row.mark, row.name, *numbers(row), row.outcome) for row in found]
    return aligned(table)


def aligned(table: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [GAP.join(pad(cells, widths)) for cells in table]


def pad(cells: tuple[str, ...], widths: list[int]) -> list[str]:
    """Numbers to the right, words to the left."""
    last = len(cells) - 1
    return [
        cell.rjust(width) if 1 < i < last else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


def numbers(row: Row) -> tuple[str, ...]:
    return tuple(cell.line for cell in (row.size, row.latency, row.eager, row.same, row.score))


def paragraph(run: Run, row: Row, width: int) -> list[str]:
    titled = zip(headers(run), numbers(row), strict=True)
    facts = " · ".join(f"{title} {value}" for title, value in titled if value != words.NONE)
    lines = wrap(f"{row.mark} {row.name}", width)
    for line in (facts, row.outcome):
        lines += wrap(line, width, indent="    ") if line else []
    return lines


def wrap(line: str, width: int | None, indent: str = "") -> list[str]:
    if width is None:
        return [indent + line]
    room = max(width, 20)
    return textwrap.wrap(line, room, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
