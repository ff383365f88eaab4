"""Statistics of timings: ratios with intervals, verdicts, percentiles. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from karui.errors import MeasureFailed
from karui.measurement import Ratio, Speed
from karui.units import Seconds

RESAMPLES = 2000
# Two processes running the same file differ by up to about 1 % from where their memory happens to
# lie; a smaller difference than this says nothing about the artifacts and is never claimed. A copy 5 %
# slower (0.952) with an interval of +-2 % ends at 0.971 and is found: 0.985 or less is claimed.
RESOLUTION = 0.015
LEAST_ROUNDS = 6  # with five, even the whole range holds the median in less than 95 % of cases
LAGS = 20  # rounds over which noise is remembered
P99_FROM = 1000  # a p99 from fewer samples is fiction


def speed_ratio(
    baseline_rounds_s: Sequence[Seconds],
    candidate_rounds_s: Sequence[Seconds],
    *,
    seed: int = 0,
    against: str = "",
) -> Ratio:
    """How many times faster the candidate is: the median over rounds of baseline / candidate.

    The 95 % interval is the wider of two on log ratios: a moving-block bootstrap (Kuensch 1989), and
    the sign test's interval of a median; both allow for noise that comes in bursts. Below 6 rounds the
    interval is the range and nothing is claimed. MeasureFailed without a round, or for a time that is
    not positive; rounds that only one of them ran are left out.
    """
    count = min(len(baseline_rounds_s), len(candidate_rounds_s))
    times = np.asarray([baseline_rounds_s[:count], candidate_rounds_s[:count]], np.float64)
    if not count or not (np.isfinite(times).all() and (times > 0).all()):
        raise MeasureFailed("no speed-up can be given", why="a round's time is missing or not positive")
    logs = np.log(times[0] / times[1])
    memory = correlation(logs)
    low, high = np.percentile(resampled_medians(logs, memory, seed), [2.5, 97.5])
    ordered, rank = np.sort(logs), lowest_rank(count, memory)
    low, high = min(low, ordered[rank]), max(high, ordered[count - 1 - rank])
    ratio, least, most = (float(x) for x in np.exp([np.median(logs), low, high]))
    found = verdict(least, most) if count >= LEAST_ROUNDS else "no measurable difference"
    return Ratio(ratio, least, most, found, against)


def correlation(logs: np.ndarray[Any, Any]) -> float:
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


def resampled_medians(logs: np.ndarray[Any, Any], memory: float, seed: int) -> np.ndarray[Any, Any]:
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
