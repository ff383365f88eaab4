"""The pictures, drawn by matplotlib as inline SVG; needs the extra ``karui[report]``.

Each is drawn for a wide page and again for a narrow one, because scaling an SVG scales its words.
Lengths are CSS pixels (matplotlib's points at 72 dots an inch).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from karui.report import fields, words
from karui.report.scatter import RANK, Dot, bounds, budget_level, dots, place, ticks
from karui.report.steps import Step, steps
from karui.report.svg import BAD, BEST, FAINT, GOOD, INK, MUTED, PAPER, RULE, fit
from karui.report.view import ClassChange, Run, Trial

WIDE, NARROW = 960, 400
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "path.simplify": False,
    "font.size": 12.0,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}
MOST_STRIPS, MOST_SAMPLES, MOST_CLASSES = 24, 200, 16
LETTER = 7.2  # width of a letter of the labels, generous
Tips = dict[str, str]


def draw(run: Run) -> dict[str, tuple[str, str]]:
    """Name of the picture -> its wide and its narrow SVG; what has no data is left out."""
    pictures = {"pareto": pareto, "steps": waterfall, "latency": strips, "classes": dumbbells}
    made = {}
    for name, picture in pictures.items():
        wide, narrow = render(run, name, picture, WIDE), render(run, name, picture, NARROW)
        if wide and narrow:
            made[name] = (wide, narrow)
    return made


def render(run: Run, name: str, picture: Callable[[Run, int], Canvas | None], width: int) -> str:
    prefix = f"{name}-{width}"
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": prefix}), warnings.catch_warnings():
        # The browser draws the words, so a glyph that matplotlib's own font lacks is no matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = picture(run, width)
        if canvas is None:
            return ""
        out = io.StringIO()
        canvas.figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return fit(out.getvalue(), prefix, canvas.title, canvas.tips)


@final
class Canvas:
    """A figure with one axes whose margins are given in pixels: left, right, top, bottom."""

    def __init__(self, title: str, size: tuple[int, float], margins: Sequence[float]) -> None:
        width, height = size
        left, right, top, bottom = margins
        self.title = title
        self.tips: Tips = {}
        self.inner = (width - left - right, height - top - bottom)
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        box = (left / width, bottom / height, self.inner[0] / width, self.inner[1] / height)
        self.axes: Axes = self.figure.add_axes(box)
        self.axes.spines[["top", "right", "left"]].set_visible(False)
        self.axes.tick_params(length=0, pad=6)


# --- quality against latency


def pareto(run: Run, width: int) -> Canvas | None:
    found = dots(run)
    if len(found) < 2:
        return None
    title = f"{words.score_name(run)} against latency of {len(found)} candidates"
    canvas = Canvas(title, (width, 420 if width == WIDE else 380), (58, 18, 26, 46))
    frame(canvas.axes, run, found)
    levels = limits(canvas, run, found)
    for dot in sorted(found, key=lambda d: -d.rank):
        point(canvas, dot)
    axes, last = canvas.axes, 9 if width == WIDE else RANK["pareto"]
    for spot in place(found, axes.transData.transform, axes.bbox.bounds, levels, last):
        label(axes, *spot)
    return canvas


def frame(axes: Axes, run: Run, found: list[Dot]) -> None:
    """Logarithmic latency, linear score with better at the top, light horizontal rules."""
    unit = words.run_unit(run)
    (x_low, x_high), (y_low, y_high) = bounds(run, found)
    axes.set_xscale("log")
    axes.set_xlim(x_low, x_high)
    marks = ticks(x_low, x_high)
    axes.set_xticks(marks, [unit.number_short(x) for x in marks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(*((y_low, y_high) if run.higher_is_better else (y_high, y_low)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.6g}")
    axes.yaxis.grid(True, color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"latency p50, {unit.name} (logarithmic)", labelpad=8)
    axis = words.score_name(run) + (", %" if run.points else ", lower is better" * (not run.higher_is_better))
    axes.text(-48, 1.035, axis, transform=mixed(axes), color=MUTED, va="bottom")


def mixed(axes: Axes) -> mpl.transforms.Transform:
    """x in pixels from the axes' left edge, y as a share of its height."""
    share = axes.bbox.width
    return mpl.transforms.Affine2D().scale(1 / share, 1) + axes.transAxes


def limits(canvas: Canvas, run: Run, found: list[Dot]) -> list[float]:
    """The budget as dashed lines, the Pareto front as a thin one; the heights of the former."""
    axes = canvas.axes
    level = budget_level(run)
    if level is not None:
        axes.axhline(level, color=BAD, linewidth=1.1, dashes=(5, 4))
        axes.annotate("budget", (1, level), xycoords=("axes fraction", "data"), color=BAD,
                      ha="right", va="top", xytext=(0, -4), textcoords="offset points",
                      size=11.5)  # fmt: skip
    if run.budget.max_latency_s is not None:
        axes.axvline(run.budget.max_latency_s, color=BAD, linewidth=1.1, dashes=(5, 4))
    front = sorted((d.x, d.y) for d in found if d.front and not d.below)
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=BEST, linewidth=1, alpha=0.55)
    return [] if level is None else [level]


def label(axes: Axes, dot: Dot, x: float, y: float, align: str) -> None:
    color = {"best": BEST, "baseline": INK, "pareto": INK}.get(dot.tone, MUTED)
    axes.annotate(dot.name, (x, y), xycoords="axes pixels", ha=align, va="center", size=11.5,
                  weight="bold" if dot.tone == "best" else "normal", color=color)  # fmt: skip


def point(canvas: Canvas, dot: Dot) -> None:
    color = {"best": BEST, "pareto": BEST, "baseline": INK, "over": BAD}.get(dot.tone, FAINT)
    axes, solid = canvas.axes, dot.tone in ("best", "pareto")
    if dot.below:
        axes.plot([dot.x], [dot.y], marker="v", color=color, markersize=7, clip_on=False)
    else:
        axes.errorbar([dot.x], [dot.y], xerr=[[dot.x - dot.x_low], [dot.x_high - dot.x]],
                      yerr=[[dot.y - dot.y_low], [dot.y_high - dot.y]], fmt="none",
                      ecolor=color, elinewidth=1.1, alpha=0.75)  # fmt: skip
        axes.scatter([dot.x], [dot.y], s=dot.area, facecolor=color if solid else PAPER,
                     edgecolor=color, linewidth=1.4, zorder=3, gid=f"dot{dot.number}")  # fmt: skip
    canvas.tips[f"dot{dot.number}"] = dot.tip


# --- step by step


def waterfall(run: Run, width: int) -> Canvas | None:
    found = steps(run)
    if not found:
        return None
    unit = words.run_unit(run)
    names = [fields.clip(step.label, 30 if width == WIDE else 20) for step in found]
    left = LETTER * max(map(len, names)) + 14
    canvas = Canvas("Where the gain comes from", (width, 44 * len(found) + 16), (left, 8, 8, 8))
    axes = canvas.axes
    longest = max(max(step.after_s, step.before_s or 0.0) for step in found)
    axes.set_xlim(0, longest / (1 - 150 / canvas.inner[0]))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(range(len(found)), names, color=INK)
    for row, step in enumerate(found):
        bar(axes, row, step, step_words(step, unit), row == len(found) - 1)
    for row, step in enumerate(found[:-1]):
        axes.plot([step.after_s] * 2, [row - 0.3, row + 1.3], color=MUTED, linewidth=0.8, zorder=0)
    return canvas


def step_words(step: Step, unit: words.TimeUnit) -> str:
    return unit(step.after_s) if step.before_s is None else " ".join(words.speed(step.speed))


def bar(axes: Axes, row: int, step: Step, label: str, last: bool) -> None:
    """Totals stand on zero; a step spans what it saved, or in the warning colour what it cost."""
    before = step.before_s or 0.0
    low, high = min(before, step.after_s), max(before, step.after_s)
    worse = step.before_s is not None and step.after_s > step.before_s
    color = (BEST if last else FAINT) if step.before_s is None else BAD if worse else GOOD
    alpha = 1.0 if step.before_s is None else 0.6
    axes.barh([row], [high - low], left=[low], height=0.6, color=color, alpha=alpha, linewidth=0)
    axes.annotate(label, (high, row), xytext=(8, 0), textcoords="offset points", va="center",
                  weight="bold" if last else "normal", color=BEST if last else INK)  # fmt: skip


# --- latency, sample by sample


def strips(run: Run, width: int) -> Canvas | None:
    found = sorted((t for t in run.trials if len(t.samples_s) > 1 and t.p50_s), key=by_latency)
    found = found[:MOST_STRIPS]
    if not found:
        return None
    names = [fields.clip(t.recipe, 32 if width == WIDE else 18) for t in found]
    left = LETTER * max(map(len, names)) + 14
    height = 24 * len(found) + 50
    canvas = Canvas("Latency of each candidate, call by call", (width, height), (left, 74, 4, 46))
    axes, unit = canvas.axes, words.run_unit(run)
    every = [s for trial in found for s in trial.samples_s]
    axes.set_xscale("log")
    axes.set_xlim(min(every) / 1.06, max(every) * 1.06)
    marks = ticks(min(every) / 1.06, max(every) * 1.06)
    axes.set_xticks(marks, [unit.number_short(x) for x in marks])
    axes.set_xticks([], minor=True)
    axes.xaxis.grid(True, color=RULE, linewidth=0.8)
    axes.set_xlabel(f"{unit.name} a call (logarithmic); the tall mark is the median", labelpad=8)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_yticks(range(len(found)), names, color=INK)
    for row, trial in enumerate(found):
        strip(axes, row, trial, BEST if trial is run.shown else INK, unit)
    return canvas


def by_latency(trial: Trial) -> float:
    return trial.p50_s or 0.0


def strip(axes: Axes, row: int, trial: Trial, color: str, unit: words.TimeUnit) -> None:
    samples = sorted(trial.samples_s)
    samples = samples[:: -(-len(samples) // MOST_SAMPLES)]
    gap = float("nan")
    xs = [x for s in samples for x in (s, s, gap)]
    ys = [y for _ in samples for y in (row - 0.22, row + 0.22, gap)]
    # One path for all marks: a mark of its own for each sample would make the page twice as big.
    axes.plot(xs, ys, color=color, linewidth=1, alpha=0.4, solid_capstyle="butt")
    axes.plot([by_latency(trial)] * 2, [row - 0.38, row + 0.38], color=color, linewidth=2.2)
    axes.annotate(unit(trial.p50_s), (1, row), xycoords=("axes fraction", "data"), va="center",
                  ha="right", xytext=(72, 0), textcoords="offset points", color=color)  # fmt: skip


# --- class by class


def dumbbells(run: Run, width: int) -> Canvas | None:
    found = changes(run)
    if not found:
        return None
    names = [fields.clip(change.name, 24 if width == WIDE else 16) for change in found]
    left = LETTER * max(map(len, names)) + 14
    size = (width, 24 * len(found) + 50)
    canvas = Canvas("Score of each class, before and after", size, (left, 60, 4, 46))
    axes, scale = canvas.axes, words.scale(run)
    every = [v * scale for change in found for v in (change.before, change.after)]
    room = (max(every) - min(every)) * 0.05 or abs(max(every)) * 0.05 or 1.0
    axes.set_xlim(min(every) - room, max(every) + room)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_yticks(range(len(found)), names, color=INK)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.6g}")
    axes.xaxis.grid(True, color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    unit = ", %" if run.points else ""
    axes.set_xlabel(f"{words.score_name(run)}{unit}: ring before, dot after", labelpad=8)
    for row, change in enumerate(found):
        dumbbell(axes, row, change, run)
    return canvas


def changes(run: Run) -> list[ClassChange]:
    """The classes that changed most, worst first."""
    found = run.shown.classes if run.shown else []
    found = sorted(found, key=lambda c: -abs(c.after - c.before))[:MOST_CLASSES]
    direction = 1 if run.higher_is_better else -1
    return sorted(found, key=lambda c: direction * (c.after - c.before))


def dumbbell(axes: Axes, row: int, change: ClassChange, run: Run) -> None:
    scale, moved = words.scale(run), change.after - change.before
    worse = moved != 0 and (moved < 0) == run.higher_is_better
    color = MUTED if moved == 0 else BAD if worse else GOOD
    before, after = change.before * scale, change.after * scale
    axes.plot([before, after], [row, row], color=color, linewidth=2.4, solid_capstyle="butt")
    axes.scatter([before], [row], s=44, facecolor=PAPER, edgecolor=MUTED, linewidth=1.3, zorder=3)
    if moved:
        axes.scatter([after], [row], s=44, color=color, linewidth=0, zorder=4)
    axes.annotate(words.signed(run, moved), (1, row), xycoords=("axes fraction", "data"),
                  ha="right", va="center", xytext=(56, 0), textcoords="offset points",
                  color=color)  # fmt: skip
