"""Numbers in people's words: the only place that turns seconds, bytes and shares into units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from karui.budget import CONFIDENCE
from karui.report.view import Quality, Run, Speed

NONE = "–"
MINUS = "−"


@dataclass(frozen=True)
class TimeUnit:
    """One unit for a whole column, so that its numbers can be compared by eye."""

    name: str
    seconds: float

    def number(self, value_s: float | None) -> str:
        return NONE if value_s is None else significant(value_s / self.seconds, 3)

    def number_short(self, value_s: float) -> str:
        return f"{value_s / self.seconds:.6g}"

    def __call__(self, value_s: float | None) -> str:
        return NONE if value_s is None else f"{self.number(value_s)} {self.name}"


MICROSECONDS, MILLISECONDS = TimeUnit("µs", 1e-6), TimeUnit("ms", 1e-3)
SECONDS = TimeUnit("s", 1.0)


def time_unit(values_s: Iterable[float | None]) -> TimeUnit:
    """The unit in which the smallest of the values still reads well."""
    smallest = min((v for v in values_s if v), default=1e-3)
    if smallest < 0.1e-3:
        return MICROSECONDS
    return MILLISECONDS if smallest < 1 else SECONDS


def run_unit(run: Run) -> TimeUnit:
    return time_unit(trial.p50_s for trial in run.trials)


def significant(value: float, digits: int) -> str:
    """At most so many significant digits, never fewer than the whole part, no exponent."""
    if value == 0:
        return "0"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else -leading_zeros(abs(value))
    return signed_zero(f"{value:,.{min(max(digits - whole, 0), 12)}f}")


def leading_zeros(value: float) -> int:
    return len(f"{value:.14f}"[2:]) - len(f"{value:.14f}"[2:].lstrip("0"))


def signed_zero(number: str) -> str:
    """A typographic minus, and none before a zero."""
    bare = number.lstrip("+-")
    if not bare.strip("0.,"):
        return bare
    return number.replace("-", MINUS)


def duration(value_s: float | None) -> str:
    """Long times: 1 h 03 min, 2 min 05 s, 8.1 s."""
    if value_s is None:
        return NONE
    minutes, seconds = divmod(round(value_s), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else time_unit([value_s])(value_s)


def size(value_bytes: float | None) -> str:
    if value_bytes is None:
        return NONE
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(value_bytes) >= scale:
            return f"{significant(value_bytes / scale, 3)} {unit}"
    return f"{round(value_bytes)} B"


def count(value: float | None) -> str:
    return NONE if value is None else f"{round(value):,}"


def big_count(value: float | None) -> str:
    """1,234 or 20.6 k or 1.23 M or 4.10 G."""
    if value is None:
        return NONE
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= max(scale, 1e4):
            return f"{significant(value / scale, 3)} {unit}"
    return count(value)


def ratio_words(value: float | None) -> str:
    """5.13x, 24.0x, 131x."""
    return NONE if value is None else f"{bare_ratio(value)}x"


def bare_ratio(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else significant(value, 3)


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{bare_ratio(low)}, {bare_ratio(high)}]"


def speed(value: Speed | None) -> tuple[str, str]:
    """A ratio and its interval; the baseline has no interval."""
    if value is None:
        return NONE, ""
    if value.verdict == "baseline":
        return "1.00x", ""
    return ratio_words(value.ratio), interval(value.low, value.high)


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def score(run: Run, value: float | None) -> str:
    """91.06 % for shares, else the plain number."""
    if value is None:
        return NONE
    return f"{100 * value:.2f}" if run.points else significant(value, 4)


def score_unit(run: Run) -> str:
    return "%" if run.points else ""


def full_score(run: Run, value: float | None) -> str:
    return f"{score(run, value)} {score_unit(run)}".strip()


def change(run: Run, quality: Quality | None) -> str:
    """−0.12 [−0.31, +0.08]: how the score moved, with its interval."""
    if quality is None or quality.drop is None or quality.verdict == "baseline":
        return ""
    if quality.drop == quality.low == quality.high == 0:
        return "identical"
    moved = run.worsening(quality.drop)
    if quality.low is None or quality.high is None:
        return signed(run, moved)
    low, high = sorted((run.worsening(quality.low), run.worsening(quality.high)))
    decimals = signed_decimals(run, [moved, low, high])
    moved_words, *bounds = (signed(run, value, decimals) for value in (moved, low, high))
    return f"{moved_words} [{', '.join(bounds)}]"


def signed(run: Run, value: float, decimals: int | None = None) -> str:
    """With its sign; ``decimals`` makes neighbours agree, 2 for points."""
    if decimals is None:
        decimals = signed_decimals(run, [value])
    return signed_zero(f"{value * scale(run):+,.{decimals}f}")


def signed_decimals(run: Run, values: list[float]) -> int:
    largest = max(map(abs, values))
    if run.points or largest == 0:
        return 2
    return min(max(1 - math.floor(math.log10(largest)), 0), 12)


def scale(run: Run) -> float:
    """From the score's own unit to what people read."""
    return 100.0 if run.points else 1.0


def drop_unit(run: Run) -> str:
    return "points" if run.points else f"in {run.score}"


def score_name(run: Run) -> str:
    names = {"top1": "top-1", "top5": "top-5", "mse": "MSE", "agreement": "agreement"}
    return names.get(run.score, run.score)


def budget(run: Run) -> str:
    """at most 0.5 points lost, at most 2 ms a call, at most 1 MiB"""
    limits, lost = run.budget, lost_budget(run)
    parts = [f"at most {lost} lost"] if lost else []
    if lost and limits.confidence != CONFIDENCE:
        parts.append(f"{100 * limits.confidence:.3g} % sure")
    if limits.max_latency_s is not None:
        unit = time_unit([limits.max_latency_s])
        parts.append(f"at most {unit.number_short(limits.max_latency_s)} {unit.name} a call")
    if limits.max_size_bytes is not None:
        parts.append(f"at most {size(limits.max_size_bytes)}")
    return ", ".join(parts) or "none"


def lost_budget(run: Run) -> str:
    """What may be lost: 0.5 points, or 1 %; empty without a budget."""
    limits = run.budget
    if limits.share is not None:
        return f"{100 * limits.share:.3g} %"
    if limits.allowed is None:
        return ""
    return plural(round(100 * limits.allowed, 6), "point") if run.points else f"{limits.allowed:.3g}"


def plural(number: float, noun: str) -> str:
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"
