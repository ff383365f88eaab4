"""A summary for pull requests, in GitHub's Markdown."""

from __future__ import annotations

import re

from karui.report import fields, words
from karui.report.fields import Json
from karui.report.rows import Cell, Row, headers, rows
from karui.report.text import about, confirmation
from karui.report.view import Run, read

SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#$])")


def markdown(result: Json) -> str:
    """Headline, one table with every candidate, warnings and the command."""
    run = read(result)
    parts = [f"## {safe(run.headline)}", safe(lede(run)), grid(run), notes(run), origin(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


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


def grid(run: Run) -> str:
    titles = ["", "candidate", *map(safe, headers(run)), "verdict"]
    rule = ["---", "---", *["--:"] * len(headers(run)), "---"]
    return "\n".join(map(line, [titles, rule, *map(cells, rows(run))]))


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


def origin(run: Run) -> str:
    """The command, the machine and the version, small."""
    command = fields.text(run.data, "command")
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
