"""The layers of an INT8 model: what runs in which precision, how much each disturbs, and its ranges."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from karui.report import fields
from karui.report.view import Run, Trial

LOUDEST_DB, QUIETEST_DB = 0.0, 60.0  # ends of the bars
TALL = 18.0


def layers(run: Run) -> str:
    """A table of the layers of the shown model, or of the first INT8 one; empty where none tells any."""
    trial = next((one for one in (run.shown, *run.trials) if one and told(one)), None)
    if trial is None:
        return ""
    share = fields.number(trial.data, "executed", "int8_macs")
    head = "" if share is None else f" {share:.1%} of the multiplications run in INT8 kernels."
    rows = "".join(map(row, told(trial)))
    return (
        f'<section class="layers"><h2>Layers of <code>{escape(trial.recipe)}</code></h2>'
        "<p>Bars: what rounding this layer alone does to the answers, as noise below the signal; the longer, "
        f"the more it disturbs.{head}</p>"
        '<table class="widths"><thead><tr><th>layer</th><th>work</th><th>runs in</th><th>noise</th>'
        f"<th></th><th>weights</th><th>inputs</th></tr></thead><tbody>{rows}</tbody></table></section>"
    )


def told(trial: Trial) -> list[dict[str, Any]]:
    found: Any = fields.at(trial.data, "executed", "layers")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, (list, tuple)) else []


def row(layer: dict[str, Any]) -> str:
    name, macs = fields.text(layer, "layer"), fields.number(layer, "macs") or 0.0
    heard, int8 = fields.number(layer, "sqnr_db"), layer.get("int8") is True
    clipped = fields.number(layer, "clipped_8_bit")
    note = f"; 8 bits would clip {clipped:.2%} of its 16-bit sums" if clipped else ""
    kind = "int8" if int8 else "float"
    noise = "" if heard is None else f"−{heard:.0f} dB"
    return (
        f'<tr><th scope="row"><code>{escape(name)}</code></th><td>{macs:.1%}</td><td>{kind}{note}</td>'
        f"<td>{noise}</td><td>{bar(heard, int8)}</td>"
        f"<td>{histogram(fields.at(layer, 'weights'), None)}</td>"
        f"<td>{histogram(fields.at(layer, 'inputs'), fields.numbers(layer, 'clip'))}</td></tr>"
    )


def bar(heard: float | None, int8: bool) -> str:
    if heard is None:
        return ""
    span = QUIETEST_DB - LOUDEST_DB
    share = 1 - (min(max(heard, LOUDEST_DB), QUIETEST_DB) - LOUDEST_DB) / span
    return f'<i class="bar{"" if int8 else " float"}" style="width:{100 * max(share, 0.01):.0f}%"></i>'


def histogram(found: Any, clip: Sequence[float] | None) -> str:
    """100 x 20 units; lines stand where a range is clipped."""
    try:
        low, high, counts = float(found[0]), float(found[1]), [float(count) for count in found[2]]
    except (TypeError, ValueError, IndexError, KeyError):
        return ""
    most = max(counts, default=0.0)
    if most <= 0 or high <= low:
        return ""
    wide = 100 / len(counts)
    boxes = "".join(
        f'<rect x="{i * wide:.1f}" y="{20 - TALL * count / most:.1f}" width="{wide:.1f}" '
        f'height="{TALL * count / most:.1f}"/>'
        for i, count in enumerate(counts)
    )
    lines = "".join(
        f'<path d="M{100 * (end - low) / (high - low):.1f} 0V20"/>' for end in clip or () if low < end < high
    )
    words = f"from {low:.3g} to {high:.3g}" + (f", kept from {clip[0]:.3g} to {clip[1]:.3g}" if clip else "")
    head = f'<svg class="curve filled" viewBox="0 0 100 20" role="img"><title>{escape(words)}</title>'
    return f"{head}{boxes}{lines}</svg>"
