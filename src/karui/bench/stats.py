"""Statistics of timings: ratios with intervals, verdicts, percentiles. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from karui.measurement import Ratio, Speed
from karui.units import Seconds

RESAMPLES = 2000
# Two processes running the same file differ by up to about 1 % from where their memory happens to
# lie; a smaller difference than this says nothing about the artifacts and is never claimed.
RESOLUTION = 0.015
P99_FROM = 1000  # a p99 from fewer samples is fiction


def speed_ratio(
    baseline_rounds_s: Sequence[Seconds],
    candidate_rounds_s: Sequence[Seconds],
    *,
    seed: int = 0,
    against: str = "",
) -> Ratio:
    """How many times faster the candidate is: the median over rounds of baseline / candidate.

    The 95 % interval is the wider of two on log ratios: a moving-block bootstrap, and the
    distribution-free interval of a median; both allow for noise that comes in bursts.
    """
    count = min(len(baseline_rounds_s), len(candidate_rounds_s))
    logs = np.log(np.asarray(baseline_rounds_s[:count]) / np.asarray(candidate_rounds_s[:count]))
    low, high = np.percentile(resampled_medians(logs, seed), [2.5, 97.5])
    ordered, rank = np.sort(logs), lowest_rank(logs)
    low, high = min(low, ordered[rank]), max(high, ordered[count - 1 - rank])
    ratio, least, most = (float(x) for x in np.exp([np.median(logs), low, high]))
    return Ratio(ratio, least, most, verdict(least, most), against)


def lowest_rank(logs: np.ndarray[Any, Any]) -> int:
    """Rank of the interval's lower end among the sorted values (sign test, normal approximation).

    Neighbours that stay on the same side of the median make the series worth fewer rounds.
    """
    sides = np.sign(logs - np.median(logs))
    together = float((sides[1:] * sides[:-1]).mean()) if len(logs) > 2 else 0.0
    correlation = min(max(together, 0.0), 0.9)
    reach = 0.98 * np.sqrt(len(logs) * (1 + correlation) / (1 - correlation))
    return max(0, int(np.floor(len(logs) / 2 - reach)))


def resampled_medians(logs: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Medians of ``RESAMPLES`` series put together from random runs of neighbouring rounds."""
    count = len(logs)
    block = max(1, round(count ** (1 / 3)))
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
