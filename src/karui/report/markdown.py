"""A summary for pull requests, in GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from karui.report import fields, words
from karui.report.fields import Json
from karui.report.kinds import KindRow, kind_rows
from karui.report.rows import MARKS, Cell, Row, headers, rows, tone
from karui.report.text import about, confirmation
from karui.report.tradeoffs import NUMBERS, TITLE, footnotes, tells
from karui.report.tradeoffs import cells as kind_cells
from karui.report.tradeoffs import headers as kind_headers
from karui.report.view import Run, read

LONGEST, SHORT = 10_000, 160  # letters of a command
SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#$])")


def markdown(result: Json) -> str:
    """Headline, one table with every candidate, one by kind, warnings and the command."""
    run = read(result)
    head = [f"## {safe(run.headline)}", safe(lede(run)), grid(run, rows(run))]
    by_kind = [f"### {TITLE}", kinds_grid(run)] if tells(kind_rows(run)) else []
    parts = [*head, *by_kind, notes(run), origin(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(result: Json) -> str:
    """Some lines for the page of a CI job: what was chosen, the rows worth choosing from, warnings."""
    run = read(result)
    chosen = [row for row in rows(run) if row.tone in ("baseline", "best", "effort") or on_front(run, row)]
    left = len(run.trials) - len(chosen)
    rest = f"<sub>{left} further candidates are in the report.</sub>" if left > 0 else ""
    parts = [
        f"### {safe(run.headline)}",
        safe(lede(run)),
        grid(run, chosen),
        rest,
        notes(run),
        origin(run, SHORT),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def on_front(run: Run, row: Row) -> bool:
    """Whether no kept candidate beats it in latency, loss and size at once."""
    return row.trial is not None and row.trial.id in run.pareto


def kinds(result: Json) -> str:
    """The trade-offs by kind alone."""
    return kinds_grid(read(result)) + "\n"


def kinds_grid(run: Run) -> str:
    found, titles = kind_rows(run), kind_headers(run)
    rule = ["--:" if column in NUMBERS else "---" for column in range(len(titles))]
    table = [[*map(safe, titles)], rule, *(kind_line(run, row) for row in found)]
    said = "<br>\n".join(f"> {safe(note)}" for note in footnotes(run, found))
    return "\n".join(map(line, table)) + f"\n\n{said}"


def kind_line(run: Run, row: KindRow) -> list[str]:
    title, recipe, *rest = kind_cells(run, row)
    if row.trial:
        recipe = f"{MARKS[tone(run, row.trial)]} {code(row.trial.recipe)}"
    return [safe(title), recipe, *map(safe, rest)]


def safe(text: str) -> str:
    """Text as text: nothing of it is markup, a link, a mention or a cell's end."""
    escaped = SPECIAL.sub(r"\\\1", text.replace("&", "&amp;"))
    return escaped.replace("://", ":\u200b//").replace("@", "@\u200b")


def code(text: str) -> str:
    """Inline code; in a table a bar would end the cell even there."""
    fence = "``" if "`" in text else "`"
    room = " " if "`" in text else ""
    return f"{fence}{room}{text}{room}{fence}".replace("|", "\\|") if text else ""


def lede(run: Run) -> str:
    detail = fields.text(run.data, "verdict", "detail")
    return "\n\n".join(part for part in (detail, compiled(run), confirmation(run), about(run)) if part)


def compiled(run: Run) -> str:
    """The second of the three baselines, for which the table has no column."""
    speed = run.best.compiled if run.best else None
    if speed is None or speed.verdict == "baseline":
        return ""
    return f"Against torch.compile: {' '.join(words.speed(speed))}."


def grid(run: Run, found: Sequence[Row]) -> str:
    titles = ["", "candidate", *map(safe, headers(run)), "verdict"]
    rule = ["---", "---", *["--:"] * len(headers(run)), "---"]
    return "\n".join(map(line, [titles, rule, *map(cells, found)]))


def line(parts: list[str]) -> str:
    return f"| {' | '.join(parts)} |"


def cells(row: Row) -> list[str]:
    name = f"**{code(row.name)}**" if row.tone in ("best", "effort") else code(row.name)
    numbers = [cell(c) for c in (row.size, row.latency, row.eager, row.same, row.score)]
    return [row.mark, name, *numbers, safe(row.outcome)]


def cell(value: Cell) -> str:
    return safe(value.main) + (f"<br><sub>{safe(value.note)}</sub>" if value.note else "")


def notes(run: Run) -> str:
    found = fields.texts(run.data, "warnings") + fields.texts(run.data, "host", "warnings")
    return "\n".join(f"> ⚠ {safe(fields.clip(text, 400))}" for text in found)


def origin(run: Run, most: int = LONGEST) -> str:
    """The command, at most so many letters of it, the machine and the version, small."""
    command = fields.clip(fields.text(run.data, "command"), most)
    cpu = fields.text(run.data, "host", "cpu")
    version = fields.text(run.data, "karui")
    on = fields.text(run.data, "target", "on")
    facts = [
        f"on {code(on)}" if on else "",
        safe(cpu),
        f"karui {safe(version)}" if version else "",
        code(command),
    ]
    return f"<sub>{' · '.join(fact for fact in facts if fact)}</sub>"
