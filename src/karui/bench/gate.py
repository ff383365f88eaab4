"""Is an artifact still as fast? Ratios of openings then and now in, a verdict out. Pure functions.

An alarm must not depend on what else the machine does, so single calls that nothing interrupted are
compared (the fastest tenth of a round), and not the means of ``karui.bench.stats``, which say what a user
waits. They are compared within rounds, for a processor changes its pace; and where a process happens to
lie in memory shifts a whole opening, so openings are the sample, then and now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from karui.errors import MeasureFailed
from karui.units import Seconds

Verdict = Literal["as locked", "regression", "undecided"]

LOOKS = (4, 6, 8, 12, 16, 24, 32)  # numbers of openings after which a verdict may fall
FALSE_ALARM, MISSED = 0.01, 0.05  # over all looks, where the change is just what is allowed
QUIET = 0.1  # quantile of a round's calls; of six calls of 2 ms each, half may be interrupted
TRIMMED = 0.2  # of the openings at each end: on a busy machine one in ten may lie far off
LEAST_SPREAD = 0.005  # between openings, on logs: four of them may agree by chance


@dataclass(frozen=True)
class Change:
    """How fast it is now, as a share of how fast it was: 0.9 is slower.

    low, high: the one-sided bounds that decide, each at its own level.
    """

    ratio: float
    low: float
    high: float
    verdict: Verdict


def quiet_ratio(baseline_s: Sequence[Sequence[Seconds]], candidate_s: Sequence[Sequence[Seconds]]) -> float:
    """Logarithm of how many times faster the candidate is, in one opening.

    Each argument holds one list of single calls per round; a round that only one of them ran is left out.
    """
    logs = [math.log(quiet(one) / quiet(other)) for one, other in zip(baseline_s, candidate_s)]
    if not logs:
        raise MeasureFailed("no speed-up can be given", why="no round was timed")
    return float(np.median(logs))


def quiet(calls_s: Sequence[Seconds]) -> Seconds:
    found = float(np.quantile(calls_s, QUIET)) if len(calls_s) else math.nan
    if not 0 < found < math.inf:
        raise MeasureFailed("no speed-up can be given", why="a round's time is missing or not positive")
    return found


def sequential(
    then: Sequence[float], fresh: Callable[[], float], allowed: float
) -> tuple[Change, list[float]]:
    """Open anew until the verdict is sure or the last look is over; gives the change, and all openings.

    then, and what ``fresh`` gives: ``quiet_ratio`` of one opening each. allowed: see ``judge_change``.
    """
    now: list[float] = []
    for count in LOOKS:
        while len(now) < count:
            now.append(fresh())
        found = judge_change(then, now, allowed)
        if found.verdict != "undecided":
            break
    return found, now


def judge_change(then: Sequence[float], now: Sequence[float], allowed: float) -> Change:
    """Whether it is surely not, or surely more than, a share ``allowed`` slower: at 0.05, below 1 / 1.05.

    Yuen's test (1974): trimmed means, and the spread between openings of both sides. Its levels are
    shared out among LOOKS, so that looking again does not add to the errors.
    """
    (a, error_a, freedom_a), (b, error_b, freedom_b) = centre(then), centre(now)
    change, error = b - a, math.hypot(error_a, error_b)
    freedom = error**4 / (error_a**4 / freedom_a + error_b**4 / freedom_b)
    low = change - student(1 - MISSED / len(LOOKS), freedom) * error
    high = change + student(1 - FALSE_ALARM / len(LOOKS), freedom) * error
    return Change(math.exp(change), math.exp(low), math.exp(high), verdict(low, high, -math.log1p(allowed)))


def verdict(low: float, high: float, limit: float) -> Verdict:
    if low > limit:
        return "as locked"
    return "regression" if high < limit else "undecided"


def centre(logs: Sequence[float]) -> tuple[float, float, int]:
    """Trimmed mean of openings, its standard error, and the degrees of freedom of that."""
    ordered, cut = np.sort(np.asarray(logs, np.float64)), int(TRIMMED * len(logs))
    kept = ordered[cut : len(ordered) - cut]
    if len(kept) < 2:
        raise MeasureFailed("a change of speed needs two openings at least", why=f"there are {len(logs)}")
    winsorized = np.clip(ordered, kept[0], kept[-1])
    share = len(kept) / len(ordered)
    spread = max(float(winsorized.std(ddof=1)) / share, LEAST_SPREAD)
    return float(kept.mean()), spread / math.sqrt(len(ordered)), len(kept) - 1


def spread(logs: Sequence[float]) -> float:
    """Between openings, on logs: what one opening is uncertain by, outliers left aside."""
    return centre(logs)[1] * math.sqrt(len(logs))


def student(level: float, freedom: float) -> float:
    """Quantile of Student's t by its expansion (Fisher and Cornish 1960); 3 degrees of freedom or more."""
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
