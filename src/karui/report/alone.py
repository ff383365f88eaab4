"""What one technique alone did, as plain text: sizes, the score, what went, what stayed and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

from karui.report import fields, words
from karui.report.changes import told
from karui.report.fields import Json

REASONS = 12


def text(facts: Json) -> str:
    """Some lines, with no end of line after the last."""
    lines = [f"  {name}: {value}" for name, value in [*score(facts), *told(facts)]]
    lines += section("kept", fields.pairs(facts, "kept"))
    counts = Counter(why for _, why in fields.pairs(facts, "stays")).most_common(REASONS)
    lines += section("stayed as it was", [(why, f"×{count}") for why, count in counts])
    lines += section("notes", [(note, "") for note in fields.texts(facts, "notes")])
    return "\n".join(lines)


def section(title: str, rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    width = max(len(name) for name, _ in rows)
    return [f"{title}", *(f"  {name:<{width}}  {value}".rstrip() for name, value in rows)]


def score(facts: Json) -> list[tuple[str, str]]:
    """Before and after, with the paired interval of the change."""
    found: Any = fields.at(facts, "score")
    if found is None:
        return [("score", "not taken: no validation data were given")]
    scale, unit, digits = (100.0, " %", 2) if found["points"] else (1.0, "", 5)
    before, after, drop, low, high = (
        scale * found[key] for key in ("before", "after", "drop", "low", "high")
    )
    drops = ", ".join(words.signed_zero(f"{value:.{digits}f}") for value in (low, high))
    worse = words.signed_zero(f"{drop:.{digits}f}")
    change = f"{before:.{digits}f} → {after:.{digits}f}{unit}, a loss of {worse} [{drops}]"
    return [(found["name"], f"{change} on {found['n']:,} samples")]
