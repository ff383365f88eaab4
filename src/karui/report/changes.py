"""What the steps of the shown recipe did to the network: what went, what stayed, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from karui.report import fields, words
from karui.report.fields import Json
from karui.report.view import Run, Trial


def changes(run: Run) -> str:
    """A section of the page; empty when the shown recipe has no steps."""
    trial = run.shown
    found = fields.at(trial.data, "executed", "steps") if trial else None
    if not trial or not isinstance(found, Mapping) or not found:
        return ""
    parts = "".join(
        one_step(name, account) for name, account in found.items() if isinstance(account, Mapping)
    )
    return f"<section><h2>What was changed in the network</h2>{parts}</section>" if parts else ""


def one_step(name: str, account: Json) -> str:
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in told(account))
    widths = rounds_curve(account) + widths_table(account)
    reasons = left(account)
    return f"<h3><code>{escape(name)}</code></h3><dl class=pairs>{facts}</dl>{widths}{reasons}"


def told(account: Json) -> list[tuple[str, str]]:
    """The facts that are one number or one word each."""
    found = []
    for name, before, after in shrunk(account):
        title = "MACs a sample" if name == "MACs" else name
        change = f"{words.big_count(before)} → {words.big_count(after)}"
        found.append((title, f"{change} (1/{before / after:.2f})"))
    found += sibling(account) + timed(account) + learned(account) + in_rounds(account)
    for key, title in (
        ("damage", "damage before the task's score"),
        ("cut_error", "cut against masked model"),
    ):
        value = fields.number(account, key)
        if value is not None:
            found.append((title, f"{value:.2g}"))
    form = {"module": "your own class, smaller", "graph": "the exported graph, rewritten"}
    if fields.text(account, "form"):
        found.append(("result", form.get(fields.text(account, "form"), fields.text(account, "form"))))
    if seen := fields.at(account, "inexact"):
        found.append(("inexact: these see fewer units", "; ".join(map(str, seen))))
    return found


def sibling(account: Json) -> list[tuple[str, str]]:
    """The dense network to compare with: all of its layers equally narrower."""
    found = fields.numbers(account, "sibling")
    if len(found) != 2:
        return []
    width, macs = found
    text = f"{width:.0%} of every width, trained from the start, {words.big_count(macs)} MACs"
    return [("dense network as small", text)]


def timed(account: Json) -> list[tuple[str, str]]:
    """A goal in latency: what was predicted and what was timed; and what odd widths cost there."""
    looked, stairs = fields.at(account, "latency"), fields.at(account, "stairs")
    found = []
    if isinstance(looked, Mapping):
        guessed, predicted, share, low, high = (
            f"{fields.number(looked, key) or 0:.1%}"
            for key in ("guessed", "predicted", "share", "low", "high")
        )
        told = f"{guessed} guessed, {predicted} predicted, {share} timed [{low}, {high}]"
        found.append(("latency, of the original's", told))
    if isinstance(stairs, Mapping) and stairs:
        costs = ", ".join(f"of {step} +{fields.number(stairs, step) or 0:.0%}" for step in stairs)
        found.append(("layers whose widths are no multiples", costs))
    return found


def in_rounds(account: Json) -> list[tuple[str, str]]:
    """Of pruning in rounds: how many answers had changed when so much was left."""
    parts = [f"{stays:.1%} left: {changed:.2f} %" for stays, changed in rounds_of(account)]
    stopped = fields.text(account, "stopped")
    told = " → ".join(parts) + (f"; {stopped}" if stopped else "")
    return [("answers changed, round by round", told)] if parts else []


def rounds_of(account: Json) -> list[tuple[float, float]]:
    """The share that stays and the percentage of answers changed, of each round; empty for anything else."""
    curve = fields.at(account, "curve")
    if not isinstance(curve, Mapping):
        return []
    return [pair for stays, changed in curve.items() for pair in points_of(f"{stays}:{changed}")]


def learned(account: Json) -> list[tuple[str, str]]:
    """Of a training: its loss before and after, and what did not go as planned."""
    steps, pair = fields.number(account, "steps"), fields.numbers(account, "loss")
    if not steps or len(pair) != 2:
        return []
    early = ", stopped early" if fields.at(account, "stopped") is True else ""
    share = fields.number(account, "distill") or 0.0
    source = {0.0: "from labels", 1.0: "from the teacher's answers"}.get(share, "from both")
    found = [("training", f"{steps:,.0f} steps {source}{early}: loss {pair[0]:.3g} → {pair[1]:.3g}")]
    held, overflows = fields.numbers(account, "held_out"), fields.number(account, "overflows")
    if len(held) == 2:
        found.append(("loss on held-out data", f"{held[0]:.3g} → {held[1]:.3g}"))
    if overflows:
        found.append(("steps left out for overflows in half precision", f"{overflows:.0f}"))
    return found


def widths_table(account: Json) -> str:
    """Width of each group of units before and after, as bars, and what removing its units does, as curves."""
    kept, curves = fields.at(account, "kept"), fields.at(account, "sensitivity")
    if not isinstance(kept, Mapping) or not kept:
        return ""
    told = curves if isinstance(curves, Mapping) else {}
    points = {str(name): points_of(text) for name, text in told.items()}
    most = max((damage for curve in points.values() for _, damage in curve), default=0.0)
    rows = "".join(
        width_row(str(name), str(text), sparkline(points.get(str(name), []), most))
        for name, text in kept.items()
    )
    legend = ""
    if most:
        legend = (
            "; the curves: damage to the answers while its units go from none to all, the others whole, "
            f"at most {most:.2g}"
        )
    return (
        f'<table class="widths"><caption>Units kept in each group of layers that share them{legend}</caption>'
        f"<tbody>{rows}</tbody></table>"
    )


def width_row(name: str, text: str, curve: str) -> str:
    after, _, before = text.partition(" of ")
    share = int(after) / int(before) if after.isdigit() and before.isdigit() and int(before) else 1.0
    bar = f'<i class="bar" style="width:{100 * share:.0f}%"></i>'
    return (
        f'<tr><th scope="row"><code>{escape(name)}</code></th><td>{escape(text)}</td><td>{bar}</td>'
        f"<td>{curve}</td></tr>"
    )


def points_of(text: Any) -> list[tuple[float, float]]:
    """Of ``0.50:0.012 0.75:0.1``; empty for anything else."""
    try:
        pairs = [part.split(":") for part in str(text).split()]
        return [(float(share), float(damage)) for share, damage in pairs]
    except ValueError:
        return []


def sparkline(points: Sequence[tuple[float, float]], most: float) -> str:
    """A curve of 100 x 20 units, all of a table on one scale."""
    if len(points) < 2 or most <= 0:
        return ""
    path = " ".join(f"{100 * share:.1f},{19 - 18 * damage / most:.1f}" for share, damage in points)
    words = ", ".join(f"{share:.0%} gone: {damage:.2g}" for share, damage in points[1:])
    return (
        f'<svg class="curve" viewBox="0 0 100 20" role="img"><title>{escape(words)}</title>'
        f'<polyline points="{path}"/></svg>'
    )


def rounds_curve(account: Json) -> str:
    """Answers changed over what is gone, round after round, from the whole model."""
    points = [(0.0, 0.0), *((1 - stays, changed) for stays, changed in rounds_of(account))]
    curve = sparkline(points, max(changed for _, changed in points))
    return f"<p>{curve}</p>" if curve else ""


def left(account: Json) -> str:
    """Why the rest stayed as it was."""
    reasons = fields.at(account, "left")
    if not isinstance(reasons, Mapping) or not reasons:
        return ""
    items = "".join(
        f"<li>{escape(str(why))} <small>×{escape(str(n))}</small></li>" for why, n in reasons.items()
    )
    return (
        f"<details><summary>What stayed as it was, and why</summary><ul class=remarks>{items}</ul></details>"
    )


def summary(trial: Trial) -> str:
    """For the table: by how much the steps made the network smaller."""
    steps: Any = fields.at(trial.data, "executed", "steps")
    accounts = steps.values() if isinstance(steps, Mapping) else ()
    found = [part for account in accounts for part in shrunk(account)]
    return ", ".join(f"{name} 1/{before / after:.2f}" for name, before, after in found)


def shrunk(account: Json) -> list[tuple[str, float, float]]:
    """What became less: its name, before and after."""
    found = []
    for key, name in (("macs", "MACs"), ("parameters", "parameters")):
        pair = fields.numbers(account, key)
        if len(pair) == 2 and pair[1]:
            found.append((name, pair[0], pair[1]))
    return found
