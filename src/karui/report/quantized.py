"""What quantization alone made, as plain text: what runs in INT8, what does not and why, the score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from karui.report import fields
from karui.report.fields import Json

LOUDEST = 5  # layers that are named


def text(made: Sequence[Json]) -> str:
    """Some lines for each artifact, with no end of line after the last."""
    return "\n".join(line for one in made for line in lines(one))


def lines(one: Json) -> list[str]:
    name = fields.text(one, "recipe")
    if failure := fields.text(one, "failure"):
        return [name, f"  failed: {failure}"]
    size = fields.number(one, "size_bytes") or 0.0
    share = fields.number(one, "executed", "int8_macs")
    told = fields.text(one, "executed", "detail")
    status = fields.text(one, "verification")
    found = [
        name,
        f"  artifact: {fields.text(one, 'artifact')} ({size / 1024:.0f} KiB, {status})",
        f"  score: {score(one)}",
        f"  runs: {told}" + ("" if share is None else f"; {share:.1%} of the multiplications in INT8"),
    ]
    return found + loudest(one) + in_float(one)


def score(one: Json) -> str:
    value, drop, low, high = (
        fields.number(one, "score", key) or 0.0 for key in ("value", "drop", "low", "high")
    )
    count = int(fields.number(one, "score", "n") or 0)
    name = fields.text(one, "score", "name")
    return f"{name} {value:.4f}, a loss of {drop:.4f} [{low:.4f}, {high:.4f}] on {count:,} samples"


def loudest(one: Json) -> list[str]:
    """The layers whose rounding disturbs most."""
    found: Any = fields.at(one, "executed", "layers") or ()
    heard = sorted((layer["sqnr_db"], layer["layer"]) for layer in found if layer.get("sqnr_db") is not None)
    if not heard:
        return []
    named = ", ".join(f"{name} ({decibels:.0f} dB)" for decibels, name in heard[:LOUDEST])
    return [f"  most disturbed by: {named}"]


def in_float(one: Json) -> list[str]:
    found: Any = fields.at(one, "executed", "fallback") or ()
    counts = Counter(str(entry["reason"]) for entry in found)
    return [f"  left in float: {reason} ×{count}" for reason, count in counts.items()]
