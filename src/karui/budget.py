"""The accuracy budget, and the judge: paired outcomes of original and candidate in, a verdict out.

The question is one-sided: is the drop surely below what is allowed? "within" is declared only when
chance would give such data in at most 5 % of cases if the true drop were exactly the budget.
Outcomes of 0 and 1 keep that promise in every case of benchmarks/budget_calibration.py; no judge can
keep it for outcomes without bounds, where one sample in a thousand may hold most of the drop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, get_args

from karui.errors import MeasureFailed, UsageError
from karui.measurement import Quality, Within

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Unit = Literal["points", "relative"]
Objective = Literal["latency", "size", "memory"]
CONFIDENCE = 0.95
# Share of the nominal level that is used: the true size then stays under 4.3 %, and 10,000 simulated
# draws, whose own standard error is 0.2 %, stay under 5 %.
LEVEL = 0.85
CONTINUITY = 0.5  # samples: losses minus gains moves in steps of one
LEAST_CHANGED = 10  # fewer samples than this that changed do not show how large changes are
RESAMPLES = 1000
GROUPS = 50  # of samples left out in turn, to see how skewed a score of the whole set is


@dataclass(frozen=True)
class Budget:
    """What may be lost and what must be reached.

    max_drop: in ``unit``: points of the score (1 point is 0.01) or percent of the baseline's score;
        None means 1 point for shares of right answers and 1 % for other scores.
    max_latency_s: median of one call at the target's batch. max_size_bytes: artifact on disk.
    time_s: when it is nearly used up, no further recipe is tried. objective: what shall be least: latency,
    size (the artifact's bytes) or memory (the most that its process held). confidence: how sure it has to be
    that no more is lost, from 0.5 (about as likely as not) to below 1.
    """

    max_drop: float | None = None
    unit: Unit = "points"
    max_latency_s: float | None = None
    max_size_bytes: int | None = None
    time_s: float | None = None
    objective: Objective = "latency"
    confidence: float = CONFIDENCE

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
        if not 0.5 <= self.confidence < 1:
            raise UsageError(
                f"confidence lies from 0.5 to below 1, not at {self.confidence:g}", fix="0.95, or 0.8"
            )
        if self.unit not in ("points", "relative"):
            raise UsageError(f"no unit {self.unit!r} of a drop", fix="points or relative")
        if self.objective not in get_args(Objective):
            raise UsageError(
                f"no objective {self.objective!r}", fix=f"one of: {', '.join(get_args(Objective))}"
            )

    @property
    def alpha(self) -> float:
        """How often "within" may be said where the true drop is exactly what is allowed."""
        return 1 - self.confidence

    def allowed(self, baseline_value: float) -> float:
        """The allowed drop in the score's own unit; nothing while ``max_drop`` is None."""
        share = (self.max_drop or 0.0) / 100
        return share if self.unit == "points" else share * abs(baseline_value)


def default_drop(score_is_share: bool) -> tuple[float, Unit]:
    """1 point for a share of right answers, 1 % of the baseline for other scores."""
    return (1.0, "points") if score_is_share else (1.0, "relative")


def parse_drop(text: str) -> tuple[float, Unit]:
    """Read ``0.5``, ``0.5pt`` (points) or ``1%`` (relative)."""
    number = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)"
    found = re.fullmatch(rf"\s*{number}\s*(%|points?|pts?|)\s*", text.lower())
    if not found:
        raise UsageError(f"{text!r} is not a drop", fix="0.5 (points) or 1% (relative)")
    value = float(found[1])
    if not 0 <= value < math.inf:
        raise UsageError(f"a drop must be a number that is not negative, got {text!r}", fix="0.5 or 1%")
    return value, "relative" if found[2] == "%" else "points"


def judge(
    before: Array,
    after: Array,
    allowed: float,
    *,
    higher_is_better: bool = True,
    identical: bool = False,
    alpha: float = 0.05,
) -> Quality:
    """Judge paired outcomes, one number per sample, each of shape (n,).

    Outcomes of 0 and 1 are judged by Tango's score test for paired proportions (1998), others by a
    t-test corrected for skewness (Hall 1992). ``identical`` says that both are known to be the same
    function, so that equal outcomes are no accident. [low, high] is the two-sided 95 % interval of the
    same test, wider than the one-sided bound that decides. Raises MeasureFailed on NaN.
    """
    before, after = paired(before, after)
    lost = before - after if higher_is_better else after - before
    n, drop, value = len(lost), float(lost.mean()), float(after.mean())
    if identical:
        return Quality(value, drop, drop, drop, "within" if drop <= allowed else "over", n)
    bound = binary_bounds(lost) if is_binary(before, after) else mean_bounds(lost, largest(before, after))
    low, high = bound(-1, 0.025), bound(1, 0.025)
    bottom, top = bound(-1, alpha), bound(1, alpha)
    found = verdict(bottom, top, allowed)
    if found != "undecided":
        return Quality(value, drop, low, high, found, n)
    if is_binary(before, after):
        counts = (int((lost > 0).sum()), int((lost < 0).sum()), n)
        more = more_pairs(counts, allowed, alpha)
    else:
        more = more_samples(drop, top, n, allowed)
    return Quality(value, drop, low, high, found, n, more_samples=more)


def judge_whole(
    pair: Callable[[Any], tuple[float, float]],
    n: int,
    allowed: float,
    *,
    higher_is_better: bool = True,
    seed: int = 0,
    alpha: float = 0.05,
) -> Quality:
    """Judge a score that is one number for the whole set, by a paired bootstrap over its n samples.

    ``pair(rows)`` gives (before, after) on the samples ``rows`` (an index array; None for all). The
    same rows are drawn for both, so that what is hard for both cancels. The bounds are BCa (Efron
    1987): a drop is skewed, and the basic and the percentile bootstrap each err on one side of it.
    Resamples on which the score is undefined are left out; MeasureFailed if that is half of them.
    """
    import numpy as np

    sign, rng = (1.0 if higher_is_better else -1.0), np.random.default_rng(seed)
    before, after = (float(x) for x in pair(None))
    if not math.isfinite(before) or not math.isfinite(after):
        raise MeasureFailed("the score of the whole set is NaN or infinite")
    drop = sign * (before - after)
    drops = defined([pair(rng.integers(0, n, n)) for _ in range(RESAMPLES)], sign)
    level = bca(drops, drop, defined(without_groups(pair, n, rng), sign) if n > 1 else drops[:1])
    unseen = 0.0 if np.ptp(drops) > 0 else math.log(1 / alpha) / n * max(abs(before), abs(after))
    low, high, bottom, top = (
        float(np.quantile(drops, level(side, a))) + side * unseen
        for side, a in ((-1, 0.025), (1, 0.025), (-1, alpha), (1, alpha))
    )
    low, high, found = min(low, drop), max(high, drop), verdict(bottom, max(top, drop), allowed)
    more = more_samples(drop, top, n, allowed) if found == "undecided" else None
    return Quality(after, drop, low, high, found, n, more_samples=more)


def paired(before: Array, after: Array) -> tuple[Array, Array]:
    """Both as float64 of one shape (n,), n at least 1, all finite."""
    import numpy as np

    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.ndim != 1 or before.shape != after.shape or not before.size:
        why = f"the original has {before.shape}, the candidate {after.shape}"
        raise MeasureFailed("outcomes must be one number per sample for both", why=why)
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise MeasureFailed("the outputs contain NaN", why="the score holds NaN or infinite values")
    return before, after


def is_binary(before: Array, after: Array) -> bool:
    return bool(((before == 0) | (before == 1)).all() and ((after == 0) | (after == 1)).all())


def largest(before: Array, after: Array) -> float:
    return float(max(abs(before).max(), abs(after).max()))


def verdict(bottom: float, top: float, allowed: float) -> Within:
    """From the one-sided bounds of the drop."""
    if top <= allowed:
        return "within"
    return "over" if bottom > allowed else "undecided"


def binary_bounds(lost: Array) -> Callable[[int, float], float]:
    losses, gains, n = int((lost > 0).sum()), int((lost < 0).sum()), len(lost)
    return lambda side, alpha: paired_bound(losses, gains, n, side, alpha)


def mean_bounds(lost: Array, scale: float) -> Callable[[int, float], float]:
    return lambda side, alpha: mean_bound(lost, scale, side, alpha)


def paired_bound(losses: int, gains: int, n: int, side: int, alpha: float) -> float:
    """One-sided bound of (losses - gains) / n: upper for ``side`` 1, lower for -1.

    The drop from which on ``surely_below`` holds; found by bisection.
    """
    if side < 0:
        return -paired_bound(gains, losses, n, 1, alpha)
    inside, outside = max((losses - gains) / n, -1.0), 1.0
    for _ in range(60):
        middle = (inside + outside) / 2
        if surely_below(losses, gains, n, middle, alpha):
            outside = middle
        else:
            inside = middle
    return outside


def surely_below(losses: Any, gains: Any, n: Any, drop: float, alpha: float = 0.05) -> Any:
    """Whether the true drop is surely less than ``drop``: numbers or arrays of counts in, bool out.

    Tango (1998): the observed drop in standard errors of the constrained maximum-likelihood estimate
    at ``drop``. Added here: a continuity correction, and the skewness term of Cornish and Fisher, as
    few losses and fewer gains are no more normal than Poisson counts are.
    """
    import numpy as np

    losses, gains = np.asarray(losses, np.float64), np.asarray(gains, np.float64)
    z = NormalDist().inv_cdf(1 - LEVEL * alpha)
    a, b, c = 2 * n, -losses - gains + (2 * n - losses + gains) * drop, -gains * drop * (1 - drop)
    gain_share = np.maximum((np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a), max(0.0, -drop))
    changed = 2 * gain_share + drop
    variance = np.maximum(changed - drop**2, 0.0)
    third = drop - 3 * drop * changed + 2 * drop**3
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = np.where(variance > 0, third / variance, 0.0)
    distance = n * drop - (losses - gains) - CONTINUITY + (z * z - 1) / 6 * skewness
    return (variance > 0) & (distance >= z * np.sqrt(n * variance))


def more_pairs(counts: tuple[int, int, int], allowed: float, alpha: float) -> int | None:
    """How many further samples, changing at the rates so far, would bring "within"; None if none."""
    losses, gains, n = counts

    def enough(total: int) -> bool:
        return bool(surely_below(losses * total / n, gains * total / n, total, allowed, alpha))

    few, many = n, 2 * n
    while not enough(many):
        few, many = many, 2 * many
        if (losses - gains) / n >= allowed or many > 1 << 40:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many - n


def more_samples(drop: float, top: float, n: int, allowed: float) -> int | None:
    """The same where bounds narrow with the root of n."""
    if drop >= allowed or top <= allowed:
        return None
    return max(1, math.ceil(n * ((top - drop) / (allowed - drop)) ** 2) - n)


def mean_bound(lost: Array, scale: float, side: int, alpha: float) -> float:
    """One-sided bound of the mean: the wider of Student's and Hall's, and what was not yet seen.

    Hall's cubic transformation (1992) removes the skewness of t and can be inverted. Of long tails a
    sample holds too little: one more sample as bad as the worst is added. With hardly any sample
    changed, the share that chance may have hidden is taken as lost in full (``scale`` each).
    """
    if side < 0:
        return -mean_bound(-lost, scale, 1, alpha)
    n, mean, spread = len(lost), float(lost.mean()), float(lost.std())
    z = NormalDist().inv_cdf(1 - LEVEL * alpha)
    reach = 0.0
    if spread > 0 and n > 1:
        a = float((((lost - mean) / spread) ** 3).mean()) / math.sqrt(n)
        student = z * (1 + (z * z + 1) / (4 * n))
        reach = max(student, -hall(-z, a)) * spread / math.sqrt(n - 1)
    unseen = (float(lost.max()) - mean) / n
    if int((lost != 0).sum()) < LEAST_CHANGED:
        unseen = math.log(1 / (LEVEL * alpha)) / n * max(scale, n * unseen)
    return mean + reach + unseen


def hall(u: float, a: float) -> float:
    """The t whose transformation t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 is ``u``."""
    if abs(a) < 1e-9:
        return u
    inner = 1 + a * (u - a / 6)
    return 3 / a * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)


def defined(pairs: list[tuple[float, float]], sign: float) -> Array:
    """The drops of those pairs that are numbers; most must be."""
    import numpy as np

    drops = np.array([sign * (before - after) for before, after in pairs], np.float64)
    kept = drops[np.isfinite(drops)]
    if 2 * len(kept) <= len(drops):
        why = f"it is NaN on {len(drops) - len(kept)} of {len(drops)} resampled sets"
        raise MeasureFailed(
            "the score is not defined on parts of the data", why=why, fix="give a score per sample"
        )
    return kept


def without_groups(
    pair: Callable[[Any], tuple[float, float]], n: int, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """The scores with one group of samples left out in turn; more than GROUPS calls would be dear."""
    import numpy as np

    group = rng.permutation(n) % GROUPS
    return [pair(np.flatnonzero(group != i)) for i in range(min(n, GROUPS))]


def bca(drops: Array, drop: float, without: Array) -> Callable[[int, float], float]:
    """Which quantile of ``drops`` is the bound: bias-corrected, accelerated.

    without: drops with one group of samples left out in turn.
    """
    normal = NormalDist()
    below = float((drops < drop).mean() + 0.5 * (drops == drop).mean())
    bias = normal.inv_cdf(min(max(below, 0.5 / len(drops)), 1 - 0.5 / len(drops)))
    pull = without.mean() - without
    total = float((pull**2).sum())
    speed = float((pull**3).sum()) / (6 * total**1.5) if total > 0 else 0.0

    def level(side: int, alpha: float) -> float:
        z = bias + side * normal.inv_cdf(1 - LEVEL * alpha)
        return normal.cdf(bias + z / max(1 - speed * z, 0.1))

    return level
