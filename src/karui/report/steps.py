"""Where the gain comes from: from the baseline to its runtime's FP32, then to the precision."""

from __future__ import annotations

from dataclasses import dataclass

from karui.report.view import Run, Speed, Trial


@dataclass(frozen=True)
class Step:
    """From one latency to another; a total has no ``before_s``."""

    label: str
    after_s: float
    before_s: float | None = None
    speed: Speed | None = None


def steps(run: Run, trial: Trial | None = None) -> list[Step]:
    """Total, steps to ``trial`` (default: the shown one), total; empty when there is nothing to attribute."""
    base, best = run.baseline, trial or run.shown
    if not base or not best or base is best or not base.p50_s or latency(base, best) is None:
        return []
    between = run.same_runtime_fp32(best)
    narrower = same_steps_fp32(run, best)
    chain = [
        base,
        *([between] if between and between is not base else []),
        *([narrower] if narrower else []),
        best,
    ]
    if any(latency(base, trial) is None for trial in chain):
        chain = [base, best]
    middle = [step(base, a, b) for a, b in zip(chain, chain[1:], strict=False)]
    return [Step(base.recipe, base.p50_s), *middle, Step(best.recipe, best.p50_s or middle[-1].after_s)]


def same_steps_fp32(run: Run, best: Trial) -> Trial | None:
    """The same steps and runtime before the precision was lowered."""
    steps, plus, last = best.recipe.rpartition(" + ")
    if not plus or best.precision == "fp32":
        return None
    wanted = f"{steps} + fp32@{last.partition('@')[2]}"
    return next((trial for trial in run.trials if trial.recipe == wanted and trial.p50_s), None)


def latency(base: Trial, trial: Trial) -> float | None:
    """The latency that the paired ratio implies, which drifts less than the median itself."""
    if trial is base or base.p50_s is None or trial.speedup is None:
        return trial.p50_s
    return base.p50_s / trial.speedup.ratio


def step(base: Trial, before: Trial, after: Trial) -> Step:
    known = before.precision == "fp32" and " + " not in before.recipe
    speed = after.speedup if before is base else after.same_runtime if known else None
    return Step(label(before, after), latency(base, after) or 0.0, latency(base, before), speed)


def label(before: Trial, after: Trial) -> str:
    """What changed: the runtime, the precision, or both."""
    numerics = after.recipe.rpartition("@")[0] or after.precision
    if before.runtime != after.runtime and before.precision == after.precision:
        return f"runtime: {after.runtime}"
    if before.runtime == after.runtime and " + " in after.recipe and " + " not in before.recipe:
        return f"steps: {numerics}"
    if before.runtime == after.runtime:
        return f"numerics: {numerics.rpartition(' + ')[2]}"
    return f"{after.runtime} and {numerics}"
