"""Statistics of timings: ratios with intervals, verdicts, percentiles. Pure functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from karui.errors import MeasureFailed
from karui.measurement import Ratio, Speed
from karui.units import Seconds

Floats = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES = 2000
# Student's t, 97.5 %, for 1, 2, ... degrees of freedom
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
# A few openings do not show how far two processes that run the same file can lie apart; a smaller
# difference than this is never claimed. A copy 5 % slower (0.952) with an interval of +-2 % ends at 0.971
# and is found: 0.985 or less is claimed.
RESOLUTION = 0.015
LEAST_ROUNDS = 6  # with five, even the whole range holds the median in less than 95 % of cases
LAGS = 20  # rounds over which noise is remembered
P99_FROM = 1000  # a p99 from fewer samples is fiction


def speed_ratio(
    baseline_s: Sequence[Sequence[Seconds]],
    candidate_s: Sequence[Sequence[Seconds]],
    *,
    seed: int = 0,
    against: str = "",
) -> Ratio:
    """How many times faster the candidate is: the median over rounds of baseline / candidate.

    Each argument holds one list of round times per opening of the artifacts; the ratio is the mean over
    openings, on logs. The 95 % interval is the wider of two: how well the rounds of all openings know
    their median (``of_median``), and Student's interval of the openings' medians, since where a process
    happens to lie in memory shifts all of its rounds alike. Below 6 rounds nothing is claimed.
    MeasureFailed without a round, or for a time that is not positive; rounds and openings that only one
    of them ran are left out.
    """
    openings = [log_ratios(one, other) for one, other in zip(baseline_s, candidate_s)]
    if not openings:
        raise MeasureFailed("no speed-up can be given", why="no opening was timed")
    centre = float(np.mean([np.median(logs) for logs in openings]))
    pooled = np.concatenate(openings)
    low, high = of_median(pooled, seed)
    reach = between(openings)
    low, high = (
        min(centre + low - np.median(pooled), centre - reach),
        max(centre + high - np.median(pooled), centre + reach),
    )
    ratio, least, most = (float(x) for x in np.exp([centre, low, high]))
    found = verdict(least, most) if len(pooled) >= LEAST_ROUNDS else "no measurable difference"
    return Ratio(ratio, least, most, found, against)


def log_ratios(baseline_s: Sequence[Seconds], candidate_s: Sequence[Seconds]) -> Floats:
    """Logarithms of baseline / candidate, one a round."""
    count = min(len(baseline_s), len(candidate_s))
    times = np.asarray([baseline_s[:count], candidate_s[:count]], np.float64)
    if not count or not (np.isfinite(times).all() and (times > 0).all()):
        raise MeasureFailed("no speed-up can be given", why="a round's time is missing or not positive")
    return np.asarray(np.log(times[0] / times[1]))


def between(openings: Sequence[Floats]) -> float:
    """Half of Student's 95 % interval of the openings' medians; 0 for one opening, which cannot tell."""
    count = len(openings)
    if count < 2:
        return 0.0
    spread = float(np.std([np.median(logs) for logs in openings], ddof=1))
    return STUDENT[min(count - 2, len(STUDENT) - 1)] * spread / math.sqrt(count)


def spread_of_openings(
    baseline_s: Sequence[Sequence[Seconds]], candidate_s: Sequence[Sequence[Seconds]]
) -> float:
    """Standard deviation, on logs, of the ratio from one opening to the next; NaN for a single one."""
    medians = [np.median(log_ratios(one, other)) for one, other in zip(baseline_s, candidate_s)]
    return float(np.std(medians, ddof=1)) if len(medians) > 1 else math.nan


def widened(ratio: Ratio, spread: float) -> Ratio:
    """A ratio of one opening, allowing for the spread between openings seen elsewhere in the session."""
    logs = np.log([ratio.low, ratio.ratio, ratio.high])
    low, high = (
        logs[1] - np.hypot(logs[1] - logs[0], 1.96 * spread),
        logs[1] + np.hypot(logs[2] - logs[1], 1.96 * spread),
    )
    least, most = float(np.exp(low)), float(np.exp(high))
    sure = ratio.verdict in ("faster", "slower")
    return dataclasses.replace(
        ratio, low=least, high=most, verdict=verdict(least, most) if sure else ratio.verdict
    )


def of_median(logs: Floats, seed: int) -> tuple[float, float]:
    """The 95 % interval of a median of rounds.

    The wider of two: a moving-block bootstrap (Kuensch 1989), and the sign test's; both allow for
    noise that comes in bursts. Below 6 rounds it is the range.
    """
    memory = correlation(logs)
    low, high = np.percentile(resampled_medians(logs, memory, seed), [2.5, 97.5])
    ordered, rank = np.sort(logs), lowest_rank(len(logs), memory)
    return float(min(low, ordered[rank])), float(max(high, ordered[len(logs) - 1 - rank]))


def correlation(logs: Floats) -> float:
    """Of neighbouring rounds, 0 to 0.9: from how often both lie on the same side of the median.

    Signs do not mind outliers; sin(pi r / 2) turns theirs into that of the values (Sheppard 1899). Short
    series show too little of it; to allow for that would make every quiet series wider.
    """
    count = len(logs)
    if count < LEAST_ROUNDS:
        return 0.0
    sides = np.sign(logs - np.median(logs))
    together = float((sides[1:] * sides[:-1]).mean())
    return float(min(max(np.sin(np.pi / 2 * together), 0.0), 0.9))


def lowest_rank(count: int, memory: float) -> int:
    """Rank of the interval's lower end among the sorted values: sign test, normal approximation.

    Signs of a series with that correlation vary together; it is worth fewer rounds.
    """
    inflation = 1 + 4 / np.pi * float(np.arcsin(memory ** np.arange(1, LAGS)).sum())
    reach = 0.98 * np.sqrt(count * inflation)
    return max(0, int(np.floor(count / 2 - reach)))


def resampled_medians(logs: Floats, memory: float, seed: int) -> Floats:
    """Medians of ``RESAMPLES`` series put together from random runs of neighbouring rounds.

    The runs are as long as suits that correlation (Andrews 1991), at most a third of the series.
    """
    count = len(logs)
    wanted = (np.sqrt(6) * memory / (1 - memory**2)) ** (2 / 3) * count ** (1 / 3)
    block = int(min(max(1, np.ceil(wanted)), max(1, count // 3)))
    starts = np.random.default_rng(seed).integers(0, count, (RESAMPLES, -(-count // block)))
    index = (starts[:, :, None] + np.arange(block)) % count
    return np.asarray(np.median(logs[index.reshape(RESAMPLES, -1)[:, :count]], axis=1))


def verdict(low: float, high: float) -> Speed:
    """The interval must lie wholly outside of what could be the same artifact."""
    if low > 1 + RESOLUTION:
        return "faster"
    return "slower" if high < 1 / (1 + RESOLUTION) else "no measurable difference"


def half_width(ratio: Ratio) -> float:
    """Half the interval, relative to the ratio."""
    return (ratio.high - ratio.low) / 2 / ratio.ratio


def settled(ratio: Ratio, target: float = 0.02) -> bool:
    """Whether the ratio is known well enough to stop."""
    return half_width(ratio) < target


def percentiles(samples_s: Sequence[Seconds]) -> dict[str, Any]:
    """p50, p90, p99 (None below 1,000 samples) and the number of samples."""
    values = np.asarray(samples_s)
    p50, p90, p99 = (float(x) for x in np.percentile(values, [50, 90, 99]))
    return {"p50": p50, "p90": p90, "p99": p99 if len(values) >= P99_FROM else None, "n": len(values)}


def thin(samples_s: Sequence[Seconds], most: int = 200) -> list[Seconds]:
    """At most ``most`` values with the same quantiles, in rising order."""
    ordered = np.sort(np.asarray(samples_s))
    if len(ordered) <= most:
        return [float(x) for x in ordered]
    return [float(x) for x in np.quantile(ordered, (np.arange(most) + 0.5) / most)]
