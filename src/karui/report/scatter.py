"""The Pareto picture's geometry: points with both intervals, axis bounds, labels that do not clash."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from karui.report import words
from karui.report.rows import tone
from karui.report.view import Quality, Run, Trial

RANK = {"best": 0, "effort": 0, "baseline": 1, "pareto": 2, "kept": 3, "over": 4}
LARGEST, SMALLEST = 420.0, 22.0  # areas of dots, square pixels
Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels
Point = tuple[float, float]
Spot = tuple[float, float, str]  # where a label's text is anchored, and which end of it


@dataclass(frozen=True)
class Dot:
    """x in seconds, y in the units that people read the score in."""

    number: int
    name: str
    tone: str
    front: bool
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    area: float
    tip: str
    below: bool = False

    @property
    def rank(self) -> int:
        return RANK.get(self.tone, 5)


def dots(run: Run) -> list[Dot]:
    """One for every trial with a latency and a score; far worse ones stand at the picture's edge."""
    sizes = [t.size_bytes for t in run.trials if t.size_bytes and t.p50_s]
    largest = max(sizes, default=1.0)
    found = []
    for number, trial in enumerate(run.trials):
        if trial.p50_s and trial.quality and trial.quality.value is not None:
            found.append(dot(run, trial, number, largest))
    return found


def dot(run: Run, trial: Trial, number: int, largest: float) -> Dot:
    assert trial.p50_s is not None
    scale = words.scale(run)
    value = (trial.quality.value if trial.quality else None) or 0.0
    y_low, y_high = score_bounds(run, trial.quality, value)
    x_low, x_high = latency_bounds(trial, trial.p50_s)
    edge = floor(run)
    below = edge is not None and (value < edge if run.higher_is_better else value > edge)
    y = edge if below and edge is not None else value
    area = max(LARGEST * (trial.size_bytes or 0.0) / largest, SMALLEST)
    kind = dot_tone(run, trial)
    front = trial.id in run.pareto
    name = f"{trial.recipe} ({words.score(run, value)})" if below else trial.recipe
    return Dot(number, name, kind, front, trial.p50_s, x_low, x_high, y * scale,
               y_low * scale, y_high * scale, area, tip(run, trial), below)  # fmt: skip


def dot_tone(run: Run, trial: Trial) -> str:
    kind = tone(run, trial)
    if kind == "effort":
        return "best"
    if kind == "kept" and trial.id in run.pareto:
        return "pareto"
    return kind


def floor(run: Run) -> float | None:
    """The score below which exact height says nothing: two budgets down, in the score's unit."""
    return worst_score(run, 2)


def budget_level(run: Run) -> float | None:
    """The budget's line, in the units that people read."""
    score = worst_score(run, 1)
    return None if score is None else score * words.scale(run)


def worst_score(run: Run, budgets: float) -> float | None:
    """The baseline's score less so many budgets; None without both, and for no budget at all."""
    base = run.baseline.quality.value if run.baseline and run.baseline.quality else None
    allowed = run.budget.allowed
    if base is None or allowed is None or (allowed == 0 and budgets > 1):
        return None
    return base + run.worsening(budgets * allowed)


def score_bounds(run: Run, quality: Quality | None, value: float) -> tuple[float, float]:
    """The interval of the drop, laid around the value."""
    if quality is None or quality.drop is None or quality.low is None or quality.high is None:
        return value, value
    down, up = max(quality.high - quality.drop, 0.0), max(quality.drop - quality.low, 0.0)
    low, high = (value - down, value + up) if run.higher_is_better else (value - up, value + down)
    return (low, max(min(high, 1.0), value)) if run.points else (low, high)


def latency_bounds(trial: Trial, p50_s: float) -> tuple[float, float]:
    """The interval of the ratio to the baseline, as latencies."""
    speed = trial.speedup
    if speed is None or speed.low is None or speed.high is None:
        return p50_s, p50_s
    return p50_s * min(speed.ratio / speed.high, 1.0), p50_s * max(speed.ratio / speed.low, 1.0)


def tip(run: Run, trial: Trial) -> str:
    quality = trial.quality
    score = words.full_score(run, quality.value if quality else None)
    change = words.change(run, quality)
    parts = [trial.recipe, words.run_unit(run)(trial.p50_s), words.size(trial.size_bytes)]
    return " · ".join([*parts, f"{words.score_name(run)} {score} {change}".strip()])


def bounds(run: Run, found: Sequence[Dot]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Room for everything, the budget line included, and for labels at the right."""
    x_low, x_high = min(d.x_low for d in found), max(d.x_high for d in found)
    ys = [y for d in found for y in ((d.y,) if d.below else (d.y_low, d.y_high))]
    level = budget_level(run)
    ys += [] if level is None else [level]
    room = (max(ys) - min(ys)) * 0.08 or abs(max(ys)) * 0.01 or 1.0
    top = 2 * room if run.higher_is_better else room
    bottom = room if run.higher_is_better else 2 * room
    return (x_low / 1.25, x_high * 1.25), (min(ys) - bottom, max(ys) + top)


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... inside the bounds, fewer when they span many decades."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = [m * 10.0**p for p in powers for m in steps]
    return [x for x in found if low <= x <= high]


def place(
    found: Sequence[Dot],
    to_pixels: Callable[[Point], Any],
    frame: Sequence[float],
    levels: Iterable[float],
    last_rank: int,
) -> list[tuple[Dot, float, float, str]]:
    """Dot, x, y (pixels from the frame's corner) and alignment of each label that finds room.

    The important ones choose first; a label without room is left to the tip and the table.
    ``levels`` are heights, in the dots' units, of lines across the frame that labels keep off; a
    line has a word of its own below its right end.
    """
    left, bottom, width, height = frame

    def pixels(x: float, y: float) -> Point:
        across, up = to_pixels((x, y))
        return float(across) - left, float(up) - bottom

    hard, soft = obstacles(found, pixels)
    for up in (pixels(found[0].x, level)[1] for level in levels):
        soft.append((0.0, up - 1, width, up + 1))
        hard.append((width - 50, up - 22, width, up))
    placed = []
    for dot in sorted((d for d in found if d.rank <= last_rank), key=lambda d: d.rank):
        important = dot.rank <= RANK["pareto"]
        options = candidates(pixels(dot.x, dot.y), radius(dot), (6, 13, 22) if important else (6, 13))
        boxes = {option: label_box(dot.name, *option) for option in options}
        boxes = {option: box for option, box in boxes.items() if inside(box, width, height)}
        spot = first_free(boxes, hard + soft)
        if spot is None and important:
            spot = first_free(boxes, hard)
        if spot:
            hard.append(boxes[spot])
            placed.append((dot, *spot))
    return placed


def first_free(boxes: Mapping[Spot, Box], taken: Sequence[Box]) -> Spot | None:
    free = (option for option, box in boxes.items() if not any(overlap(box, t) for t in taken))
    return next(free, None)


def obstacles(found: Sequence[Dot], pixels: Callable[..., Point]) -> tuple[list[Box], list[Box]]:
    """What the dots cover, and what their bars cover, which a label may cross if it must."""
    hard, soft = [], []
    for dot in found:
        (x, y), r = pixels(dot.x, dot.y), radius(dot)
        hard.append((x - r, y - r, x + r, y + r))
        if not dot.below:
            low, high = sorted((pixels(dot.x, dot.y_low)[1], pixels(dot.x, dot.y_high)[1]))
            first, last = pixels(dot.x_low, dot.y)[0], pixels(dot.x_high, dot.y)[0]
            soft += [(x - 1, low, x + 1, high), (first, y - 1, last, y + 1)]
    return hard, soft


def radius(dot: Dot) -> float:
    return math.sqrt(dot.area / math.pi)


def candidates(spot: Point, size: float, distances: Sequence[int]) -> list[Spot]:
    return [option for out in distances for option in ring(spot, size, out)]


def ring(spot: Point, size: float, out: float) -> list[Spot]:
    """Places at one distance from the dot: above and below, beside, flush with it, at its corners."""
    (x, y), r = spot, size + out
    corner = r * 0.6
    up, slant = r + 4, r * 0.7 + 4
    beside: list[Spot] = [(x, y + up, "center"), (x, y - up, "center"),
                          (x + r, y, "left"), (x - r, y, "right")]  # fmt: skip
    flush: list[Spot] = [(x - size, y + up, "left"), (x - size, y - up, "left"),
                         (x + size, y + up, "right"), (x + size, y - up, "right")]  # fmt: skip
    corners: list[Spot] = [(x + corner, y + slant, "left"), (x - corner, y + slant, "right"),
                           (x + corner, y - slant, "left"), (x - corner, y - slant, "right")]  # fmt: skip
    return beside + flush + corners


def label_box(name: str, x: float, y: float, align: str) -> Box:
    width = 6.9 * len(name)
    left = {"left": x, "center": x - width / 2, "right": x - width}[align]
    return left, y - 7.5, left + width, y + 7.5


def inside(box: Box, width: float, height: float) -> bool:
    return box[0] >= 0 and box[2] <= width and box[1] >= 0 and box[3] <= height


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
