"""The accuracy budget, and the judge: paired outcomes of original and candidate in, a verdict out.

The question is one-sided: is the drop surely below what is allowed? "within" is declared only when
chance would give such data in at most 5 % of cases if the true drop were exactly the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from karui.errors import MeasureFailed, UsageError
from karui.measurement import Quality, Within

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Unit = Literal["points", "relative"]
# Keep the size of the discrete test below its level in every simulated case, see docs/budget.md:
CONTINUITY = 1.0  # samples
LEVEL = 0.94  # share of the nominal level that is used
RESAMPLES = 1000
CHUNK = 1 << 22  # resampled values held at a time


@dataclass(frozen=True)
class Budget:
    """What may be lost and what must be reached.

    max_drop: in ``unit``: points of the score (1 point is 0.01) or percent of the baseline's score;
        None means 1 point for shares of right answers and 1 % for other scores.
    max_latency_s: median of one call at the target's batch. max_size_bytes: artifact on disk.
    time_s: when it is nearly used up, no further recipe is tried.
    """

    max_drop: float | None = None
    unit: Unit = "points"
    max_latency_s: float | None = None
    max_size_bytes: int | None = None
    time_s: float | None = None

    def __post_init__(self) -> None:
        limits = {
            "max_drop": self.max_drop,
            "max_latency_s": self.max_latency_s,
            "max_size_bytes": self.max_size_bytes,
            "time_s": self.time_s,
        }
        for name, value in limits.items():
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} must be a number that is not negative, got {value}")

    def allowed(self, baseline_value: float) -> float:
        """The allowed drop in the score's own unit."""
        share = (self.max_drop or 0.0) / 100
        return share if self.unit == "points" else share * abs(baseline_value)


def default_drop(share: bool) -> tuple[float, Unit]:
    """1 point for a share of right answers, 1 % of the baseline for other scores."""
    return (1.0, "points") if share else (1.0, "relative")


def parse_drop(text: str) -> tuple[float, Unit]:
    """Read ``0.5``, ``0.5pt`` (points) or ``1%`` (relative)."""
    words = text.strip().lower()
    number = words
    for ending in ("%", "points", "point", "pts", "pt"):
        number = number.removesuffix(ending).strip()
    try:
        value = float(number)
    except ValueError:
        raise UsageError(f"{text!r} is not a drop", fix="0.5 (points) or 1% (relative)") from None
    return value, "relative" if words.endswith("%") else "points"


def judge(
    before: Array, after: Array, allowed: float, *, higher_is_better: bool = True, identical: bool = False,
    alpha: float = 0.05,
) -> Quality:  # fmt: skip
    """Judge paired outcomes, one number per sample, each of shape (n,).

    Outcomes of 0 and 1 are judged by Tango's score test for paired proportions (1998) with a
    continuity correction; others by a bootstrap-t interval. ``identical`` says that both are known
    to be the same function, so that equal outcomes are no accident.
    """
    import numpy as np

    lost = (before - after) if higher_is_better else (after - before)
    if not np.isfinite(lost).all():
        raise MeasureFailed("the score holds NaN or infinite values")
    drop, n = float(lost.mean()), len(lost)
    if identical:
        return Quality(float(after.mean()), drop, drop, drop, "within", n)
    if set(np.unique(lost)) <= {-1.0, 0.0, 1.0}:
        losses, gains = int((lost > 0).sum()), int((lost < 0).sum())
        low, high = (paired_bound(losses, gains, n, side, 0.025) for side in (-1, 1))
        bottom, top = (paired_bound(losses, gains, n, side, alpha) for side in (-1, 1))
    else:
        low, high, bottom, top = bootstrap_t(lost, (0.025, 0.975, alpha, 1 - alpha))
    found = verdict(bottom, top, allowed)
    more = more_samples(drop, float(lost.var()), n, allowed, alpha) if found == "undecided" else None
    return Quality(float(after.mean()), drop, low, high, found, n, more_samples=more)


def verdict(bottom: float, top: float, allowed: float) -> Within:
    """From the one-sided bounds of the drop."""
    if top <= allowed:
        return "within"
    return "over" if bottom > allowed else "undecided"


def paired_bound(losses: int, gains: int, n: int, side: int, alpha: float) -> float:
    """One-sided bound of (losses - gains) / n: upper for ``side`` 1, lower for -1.

    The drop at which Tango's statistic reaches the level; found by bisection.
    """
    if side < 0:
        return -paired_bound(gains, losses, n, 1, alpha)
    critical = NormalDist().inv_cdf(1 - LEVEL * alpha)
    inside, outside = max((losses - gains) / n, -1.0), 1.0
    for _ in range(60):
        middle = (inside + outside) / 2
        if paired_statistic(losses, gains, n, middle) >= critical:
            outside = middle
        else:
            inside = middle
    return outside


def paired_statistic(losses: int, gains: int, n: int, drop: float) -> float:
    """How many standard errors the observed drop lies below ``drop`` (Tango 1998, with correction).

    The standard error is that of the constrained maximum-likelihood estimate at ``drop``.
    """
    a, b, c = 2 * n, -losses - gains + (2 * n - losses + gains) * drop, -gains * drop * (1 - drop)
    gain_share = max((math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a), 0.0)
    variance = n * (2 * gain_share + drop * (1 - drop))
    distance = n * drop - (losses - gains) - CONTINUITY
    if variance <= 0:
        return 0.0
    return distance / math.sqrt(variance)


def bootstrap_t(lost: Array, levels: tuple[float, ...]) -> tuple[float, ...]:
    """Bootstrap-t quantile bounds of the mean (Hall 1988), which allow for skewed errors.

    A bound is never nearer than the normal one; deterministic.
    """
    import numpy as np

    n, mean, spread = len(lost), float(lost.mean()), float(lost.std(ddof=1)) if len(lost) > 1 else math.inf
    if spread == 0:
        return tuple(mean for _ in levels)
    error = spread / math.sqrt(n)
    rng, parts, left = np.random.default_rng(0), [], RESAMPLES
    while left > 0 and math.isfinite(error):
        size = max(1, min(left, CHUNK // n))
        drawn = lost[rng.integers(0, n, (size, n))]
        parts.append((drawn.mean(1) - mean) / np.maximum(drawn.std(1, ddof=1) / math.sqrt(n), 1e-300))
        left -= size
    t = np.concatenate(parts) if parts else np.zeros(1)
    return tuple(one_bound(mean, error, float(np.quantile(t, 1 - level)), level) for level in levels)


def one_bound(mean: float, error: float, t: float, level: float) -> float:
    normal = NormalDist().inv_cdf(level)
    furthest = max(-t, normal) if level > 0.5 else min(-t, normal)
    return mean + furthest * error


def more_samples(drop: float, variance: float, n: int, allowed: float, alpha: float) -> int | None:
    """About how many further samples would settle it; None when it sits on the budget itself."""
    gap = abs(allowed - drop)
    if gap <= 0:
        return None
    critical = NormalDist().inv_cdf(1 - alpha)
    smallest = max(variance, allowed * (1 - min(allowed, 1.0)))  # seeing no loss is not having none
    return max(1, math.ceil(smallest * (critical / gap) ** 2 + CONTINUITY / gap) - n)


def judge_whole(
    pair: Callable[[Any], tuple[float, float]], n: int, allowed: float, *, higher_is_better: bool = True,
    seed: int = 0, alpha: float = 0.05,
) -> Quality:  # fmt: skip
    """Judge a score that is one number for the whole set, by a paired bootstrap over its n samples.

    ``pair(rows)`` gives (before, after) on the samples ``rows`` (an index array; None for all). The
    same rows are drawn for both, so that what is hard for both cancels.
    """
    import numpy as np

    sign, rng = (1.0 if higher_is_better else -1.0), np.random.default_rng(seed)
    before, after = pair(None)
    drop = sign * (before - after)
    drawn = np.array([pair(rng.integers(0, n, n)) for _ in range(RESAMPLES // 2)])
    drops = sign * (drawn[:, 0] - drawn[:, 1])
    if not np.isfinite(drops).all():
        raise MeasureFailed("the score of some resampled set is NaN", fix="give a score per sample")
    low, high, bottom, top = (float(np.quantile(drops, level)) for level in (0.025, 0.975, alpha, 1 - alpha))
    found = verdict(bottom, top, allowed)
    more = more_samples(drop, n * float(drops.var()), n, allowed, alpha) if found == "undecided" else None
    return Quality(float(after), float(drop), low, high, found, n, more_samples=more)
