"""The end of a run: the finalists side by side, the choice, and its confirmation on unseen data."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from karui.bench.rounds import Pace, Rounds, session
from karui.bench.stats import percentiles, spread_of_openings, widened
from karui.budget import Objective
from karui.errors import KaruiError, Unreachable
from karui.measurement import Quality, Trial
from karui.optimize.attempt import COMPILED, plain_id, quality, ratio, trial_id_of_baseline
from karui.optimize.workshop import Workshop
from karui.search.enumerate import log_cost

FINALISTS = 8
ALIKE = 0.01  # of two sizes


@dataclass(frozen=True)
class Conclusion:
    """The trials with their final numbers; ``best`` and ``confirmed`` are None when nothing held."""

    trials: tuple[Trial, ...]
    best: str | None
    confirmed: Quality | None
    looks: tuple[dict[str, Any], ...]


def conclude(workshop: Workshop, trials: Sequence[Trial], pace: Pace) -> Conclusion:
    """Time all finalists together, order them, and confirm from the top."""
    objective = workshop.job.budget.objective
    finalists = chosen_few(trials, objective)
    if not finalists:
        return Conclusion(tuple(trials), None, None, ())
    rounds, trials = joint(workshop, finalists, trials, pace)
    left = [t for t in trials if t.id in finalists and t.id not in rounds.failed]
    fastest = objective == "latency"
    order = ranked(left, rounds, workshop.job.seed) if fastest else by_cost(left, objective)
    best, confirmed, looks = confirm(workshop, order)
    return Conclusion(tuple(with_look(trial, looks) for trial in trials), best, confirmed, looks)


def chosen_few(trials: Sequence[Trial], objective: Objective = "latency") -> list[str]:
    """Ids of the kept trials that come first, and of the first in FP32, which can always be confirmed."""
    kept = [trial for trial in by_cost(trials, objective) if trial.kept]
    exact = [trial for trial in kept if trial.precision == "fp32"]
    return list(dict.fromkeys(trial.id for trial in [*kept[:FINALISTS], *exact[:1]]))


def with_look(trial: Trial, looks: Sequence[Mapping[str, Any]]) -> Trial:
    """A candidate that the confirmation split did not bear out says so."""
    look = next((look for look in looks if look["trial"] == trial.id), None)
    if look is None or look["verdict"] in ("within", "baseline"):
        return trial
    reason = f"{trial.reason}; on the confirmation split: {look.get('reason', look['verdict'])}"
    return dataclasses.replace(trial, status="rejected", reason=reason)


def by_latency(trials: Sequence[Trial]) -> list[Trial]:
    """Measured trials, fastest against the baseline first."""
    timed = [t for t in trials if t.measurement and t.measurement.speedup]
    return sorted(timed, key=lambda t: -t.measurement.speedup.ratio)  # type: ignore[union-attr]


def by_cost(trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """Measured trials, the best first; of those about as large as each other, the fastest."""
    if objective == "latency":
        return by_latency(trials)

    return sorted(by_latency(trials), key=lambda trial: round((log_cost(trial, objective) or 0.0) / ALIKE))


def joint(
    workshop: Workshop, finalists: Sequence[str], trials: Sequence[Trial], pace: Pace
) -> tuple[Rounds, list[Trial]]:
    """One interleaved measurement of all finalists and their baselines; replaces the earlier ratios."""
    eager, usable = trial_id_of_baseline(workshop.job), {t.id for t in by_latency(trials)}
    same = [plain_id(trial) for trial in trials if trial.id in finalists]
    wanted = [n for n in dict.fromkeys([eager, COMPILED, *same, *finalists]) if n in usable]
    pairs = [(eager, name) for name in wanted if name != eager]
    rounds = session(lambda: workshop.anew(wanted), pairs, pace, workshop.job.seed)
    spread = typical_spread(rounds, pairs)
    return rounds, [
        renewed(workshop, trial, rounds) if trial.id in wanted else allowing_for(trial, spread)
        for trial in trials
    ]


def typical_spread(rounds: Rounds, pairs: Sequence[tuple[str, str]]) -> float:
    """Root mean square, over the finalists, of how far a ratio moves between openings; 0 if unknown."""
    timed = rounds.blocks_s.keys() - rounds.failed.keys()
    known = [pair for pair in pairs if timed.issuperset(pair)]
    found = [spread_of_openings(rounds.blocks_s[base], rounds.blocks_s[name]) for base, name in known]
    squares = [spread**2 for spread in found if not math.isnan(spread)]
    return math.sqrt(statistics.fmean(squares)) if squares else 0.0


def allowing_for(trial: Trial, spread: float) -> Trial:
    """A trial that was opened once keeps its ratios, in intervals as wide as the finalists teach."""
    found = trial.measurement
    if found is None:
        return trial
    wide = dataclasses.replace(
        found,
        speedup=found.speedup and widened(found.speedup, spread),
        speedup_compiled=found.speedup_compiled and widened(found.speedup_compiled, spread),
        speedup_same_runtime=found.speedup_same_runtime and widened(found.speedup_same_runtime, spread),
    )
    return dataclasses.replace(trial, measurement=wide)


def renewed(workshop: Workshop, trial: Trial, rounds: Rounds) -> Trial:
    found, seed = trial.measurement, workshop.job.seed
    assert found is not None and found.timing is not None
    if trial.id in rounds.failed:
        return dataclasses.replace(trial, status="failed", reason=rounds.failed[trial.id].line)
    eager, timed = trial_id_of_baseline(workshop.job), workshop.opened.now.get(trial.id)
    again = dataclasses.replace(
        found.timing,
        samples_s=tuple(rounds.samples_s[trial.id]),
        rounds_s=tuple(block for opening in rounds.blocks_s[trial.id] for block in opening),
        openings=len(rounds.blocks_s[trial.id]),
        peak_memory_bytes=(timed.peak_memory_bytes if timed else 0) or found.timing.peak_memory_bytes,
    )
    found = dataclasses.replace(
        found,
        timing=again,
        speedup=ratio(rounds, eager, trial.id, seed),
        speedup_compiled=ratio(rounds, COMPILED, trial.id, seed),
        speedup_same_runtime=ratio(rounds, plain_id(trial), trial.id, seed),
    )
    return dataclasses.replace(trial, measurement=found)


def ranked(finalists: Sequence[Trial], rounds: Rounds, seed: int) -> list[Trial]:
    """Fastest first; of those not measurably slower than the fastest left, the simplest goes ahead."""
    left, order = by_latency(finalists), []
    while left:
        fastest = left[0]
        ties = [t for t in left if not slower(rounds, fastest.id, t.id, seed)]
        simplest = min(ties, key=lambda t: (t.complexity, left.index(t)))
        order.append(simplest)
        left.remove(simplest)
    return order


def slower(rounds: Rounds, fastest: str, name: str, seed: int) -> bool:
    if name == fastest:
        return False
    return rounds.ratio(fastest, name, seed).verdict == "slower"


def confirm(
    workshop: Workshop, order: Sequence[Trial]
) -> tuple[str | None, Quality | None, tuple[dict[str, Any], ...]]:
    """Judge on the confirmation split, from the top, until one holds.

    Looking at k candidates gives chance k tries, so the k-th is judged at alpha / k.
    """
    alpha = workshop.job.budget.alpha
    looks: list[dict[str, Any]] = []
    for trial in order:
        try:
            found = look_at(workshop, trial, alpha=alpha / (len(looks) + 1))
        except KaruiError as error:
            looks.append({"trial": trial.id, "verdict": "failed", "reason": error.line})
            continue
        looks.append({"trial": trial.id, "verdict": found.verdict})
        if found.verdict in ("within", "baseline"):
            return trial.id, found, tuple(looks)
    return None, None, tuple(looks)


def look_at(workshop: Workshop, trial: Trial, alpha: float) -> Quality:
    """On the confirmation split; once more when the connection to the machine ended meanwhile."""
    try:
        return quality(workshop.job, workshop.baseline(trial.id), trial, "confirm", alpha)
    except Unreachable:
        return quality(workshop.job, workshop.baseline(trial.id), trial, "confirm", alpha)


def pareto(trials: Sequence[Trial]) -> list[str]:
    """Ids of kept trials that no other beats in latency, quality drop and size at once."""
    points = {t.id: point(t) for t in by_latency(trials) if t.kept}
    return [
        a
        for a, mine in points.items()
        if not any(dominates(theirs, mine) for b, theirs in points.items() if b != a)
    ]


def point(trial: Trial) -> tuple[float, float, float]:
    found = trial.measurement
    assert found is not None and found.timing is not None and found.quality is not None
    return percentiles(found.timing.samples_s)["p50"], found.quality.drop, found.size_bytes


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other)) and any(a < b for a, b in zip(one, other))
