"""The trade-offs by kind for people: their words, plain lines, and a section of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from karui.report import fields, words
from karui.report.fields import Json
from karui.report.kinds import KindRow, kind_rows, size_ratio
from karui.report.rows import MARKS, tone
from karui.report.said import loss
from karui.report.text import aligned, wrap
from karui.report.view import Run, Trial, read

TITLE = "Trade-offs by kind"
NUMBERS = (2, 3, 4, 6)  # columns
LONGEST = 44  # letters of a recipe beside numbers


def text(result: Json, width: int | None = None) -> str:
    """Aligned columns, or a short paragraph for each kind where they do not fit."""
    run = read(result)
    rows = kind_rows(run)
    table = [headers(run), *(cells(run, row) for row in rows)]
    lines = aligned([(kind, fields.clip_middle(best, LONGEST), *rest) for kind, best, *rest in table])
    if width is not None and max(map(len, lines)) > width:
        lines = [line for made in table[1:] for line in paragraph(headers(run), made, width)]
    notes = [line for note in footnotes(run, rows) for line in wrap(note, width)]
    return "\n".join(line.rstrip() for line in [*wrap(run.headline, width), "", *lines, "", *notes]) + "\n"


def paragraph(titles: tuple[str, ...], made: tuple[str, ...], width: int) -> list[str]:
    facts = [f"{title} {value}" for title, value in zip(titles[2:], made[2:]) if value != words.NONE]
    lines = wrap(f"{made[0]}: {made[1]}", width)
    return lines + (wrap(" · ".join(facts), width, indent="    ") if facts else [])


def tells(rows: Sequence[KindRow]) -> bool:
    """Whether more than one kind was measured."""
    return sum(row.trial is not None for row in rows) > 1


def section(run: Run) -> str:
    """A section of the page; empty where there is nothing to trade off."""
    rows = kind_rows(run)
    if not tells(rows):
        return ""
    head = "".join(f'<th scope="col"{number(i)}>{escape(name)}</th>' for i, name in enumerate(headers(run)))
    lines = "\n".join(html_row(run, row) for row in rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in footnotes(run, rows))
    return (
        f'<section id="kinds"><h2>{TITLE}</h2><table class="kinds"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{lines}\n</tbody></table><ul class=remarks>{notes}</ul></section>"
    )


def html_row(run: Run, row: KindRow) -> str:
    kind = tone(run, row.trial) if row.trial else "unfinished"
    title, recipe, *rest = map(escape, cells(run, row))
    if row.trial:
        recipe = f"{MARKS[kind]} <code>{escape(row.trial.recipe)}</code>"
    body = "".join(f"<td{number(i)}>{cell}</td>" for i, cell in enumerate([recipe, *rest], 1))
    return f'<tr class="{kind}"><th scope="row">{title}</th>{body}</tr>'


def number(column: int) -> str:
    return ' class="number"' if column in NUMBERS else ' class="text"'


# --- the words


def headers(run: Run) -> tuple[str, ...]:
    score = words.score_name(run) + (" %" if run.points else "")
    return "kind", "best of it", "size", "speed", score, "takes", "built in"


def cells(run: Run, row: KindRow) -> tuple[str, ...]:
    """The words of one row; a dash stands for what the run does not have."""
    trial = row.trial
    if trial is None:
        return (row.title, words.NONE, *[words.NONE] * 4, words.NONE)
    return (
        row.title,
        f"{MARKS[tone(run, trial)]} {trial.recipe}",
        words.ratio_words(size_ratio(run, trial)),
        " ".join(words.speed(trial.speedup)).strip(),
        moved(run, trial),
        row.needs or words.NONE,
        built(row),
    )


def moved(run: Run, trial: Trial) -> str:
    """The change of the score with its interval."""
    if trial is run.baseline and trial.quality:
        return words.score(run, trial.quality.value)
    return words.change(run, trial.quality) or words.NONE


def built(row: KindRow) -> str:
    seconds = fields.number(row.trial.data, "build_s") if row.trial else None
    return words.duration(seconds) + ("*" if row.shared and seconds is not None else "")


def footnotes(run: Run, rows: Sequence[KindRow]) -> list[str]:
    """What a number alone would hide."""
    found = ["Speed: times as fast as the original. Size: share of the original's bytes. 95 % intervals."]
    if any(row.shared for row in rows):
        found.append("* Its steps were made for an earlier recipe of the run, and their time is not in this.")
    dashes: dict[str, list[str]] = {}
    for row in rows:
        if row.trial is None:
            dashes.setdefault(row.reason, []).append(row.title)
    found += [f"{words.NONE} {', '.join(titles)}: {reason}" for reason, titles in dashes.items()]
    worse = [row for row in rows if row.trial and tone(run, row.trial) in ("over", "undecided")]
    found += [
        f"{MARKS[tone(run, row.trial)]} {row.trial.recipe}: {verdict(run, row.trial)}"
        for row in worse
        if row.trial
    ]
    return found


def verdict(run: Run, trial: Trial) -> str:
    """Why the best of a kind may not be shipped."""
    lost = loss(run, trial.quality) if trial.quality else ""
    return f"{'over the budget' if tone(run, trial) == 'over' else 'undecided'}, {lost}"
