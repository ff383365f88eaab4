"""One trial: build, verify, score, time, judge. Our own errors become its reason."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from karui import runtimes
from karui.artifact import Artifact
from karui.bench.candidate import Candidate
from karui.bench.rounds import Pace, Rounds, interleave
from karui.bench.stats import percentiles
from karui.bench.verify import Expected, verify
from karui.budget import Budget, judge, judge_whole
from karui.data import open_arrays
from karui.errors import KaruiError, MeasureFailed
from karui.measurement import Measurement, Quality, Ratio, Timing, Trial
from karui.optimize.home import check_room
from karui.optimize.job import Job
from karui.optimize.made import Made, placed
from karui.optimize.workshop import Workshop, digest, reference_folder
from karui.recipe import Named, Recipe, parse_recipe

if TYPE_CHECKING:
    from karui.data import Array

COMPILED = "torch_compile-fp32"


def trial_id(recipe: Recipe) -> str:
    """A readable name that is the same in every run: ``onnxruntime-int8``, with a digest of options."""
    plain = f"{recipe.runtime.name}-{recipe.numerics.default}"
    extras = str(recipe) != f"{recipe.numerics.default}@{recipe.runtime.name}"
    words = [step.name for step in recipe.steps] + [str(value) for _, value in recipe.runtime.options]
    slug = re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
    return "-".join(part for part in (plain, slug[:30], digest(str(recipe))) if part) if extras else plain


def plain_of(recipe: Recipe) -> Recipe:
    """FP32 of the recipe's runtime on the device it runs on: what its speed is told from."""
    where = runtimes.find(recipe.runtime.name).WHERE
    options = tuple((name, value) for name, value in recipe.runtime.options if name in where)
    return Recipe(runtime=Named(recipe.runtime.name, options))


def plain_id(trial: Trial) -> str:
    return trial_id(plain_of(parse_recipe(trial.recipe)))


def attempt(
    workshop: Workshop, recipe: Recipe, trials: Sequence[Trial], pace: Pace, made: Made | None = None
) -> Trial:
    """The finished trial; a KaruiError on the way makes it a failed one. made: what was built elsewhere."""
    trial, job = untried(recipe), workshop.job
    try:
        start = time.monotonic()
        home = job.folder / "trials" / trial.id
        artifact = placed(made, job, home) if made else workshop.build(recipe, trial.id)
        built_s = made.build_s if made else time.monotonic() - start
        trial = dataclasses.replace(trial, artifact=f"trials/{trial.id}/artifact")
        if made and made.error:
            raise made.error
        measured = measure(workshop, artifact, trial, trials, pace, made.measured if made else None)
    except KaruiError as error:
        check_room(job.folder)
        return dataclasses.replace(trial, reason=error.line)
    measured = dataclasses.replace(measured, build_s=built_s)
    status, reason = decide(measured, job, trials)
    return dataclasses.replace(trial, measurement=measured, status=status, reason=reason)


def untried(recipe: Recipe) -> Trial:
    """A trial before anything has come of it."""
    name = trial_id(recipe)
    return Trial(
        id=name,
        recipe=str(recipe),
        runtime=recipe.runtime.name,
        precision=recipe.numerics.default,
        status="failed",
        reason="",
        complexity=recipe.complexity,
        log=f"trials/{name}/worker.log",
    )


def measure(
    workshop: Workshop,
    artifact: Artifact,
    trial: Trial,
    trials: Sequence[Trial],
    pace: Pace,
    known: Measurement | None = None,
) -> Measurement:
    """Open the artifact in a fresh process, verify and score it, then time it beside its baselines.

    A reference interpreter that stands in for the runtime is not timed. known: what a builder that computes
    as this machine does has verified and scored.
    """
    if known and known.verification.failure:
        return known
    with workshop.measured(artifact, trial.id) as candidate:
        measured = known or checked(workshop.job, candidate, trial)
        if measured.verification.failure:
            return measured
        if candidate.stands_in:
            return measured
        return timed(workshop, candidate, measured, trial, trials, pace)


def checked(job: Job, candidate: Candidate, trial: Trial) -> Measurement:
    """The opened artifact verified and, where it passes, scored on the split ``select``."""
    artifact = candidate.artifact
    measured = Measurement(
        size_bytes=artifact.size_bytes,
        size_compressed_bytes=artifact.size_compressed_bytes,
        verification=verify(candidate, expected(job, artifact), trial.precision, job.target.batch),
        executed=artifact.executed,
    )
    shutil.rmtree(artifact.folder.parent / "reference", ignore_errors=True)
    if measured.verification.failure:
        return measured
    return dataclasses.replace(measured, quality=quality(job, candidate, trial, "select"))


def expected(job: Job, artifact: Artifact) -> Expected:
    recipe = parse_recipe(artifact.recipe)
    changed = open_arrays(reference_folder(job.data, recipe)) if recipe.steps else {}
    original = list(changed.values()) or job.reference["probe"]
    stored = open_arrays(artifact.folder.parent / "reference")
    names = [port.name for port in artifact.signature.outputs]
    reference = [stored[name] for name in names] if stored else None
    return Expected(job.data / "probe", len(original[0]), original, reference)


def quality(job: Job, candidate: Candidate, trial: Trial, split: str, alpha: float | None = None) -> Quality:
    """The task score of the artifact in its runtime, judged against the original on the same samples. alpha:
    that of the budget unless given.
    """
    import numpy as np

    rows = len(getattr(job.splits, split))
    signature = candidate.artifact.signature
    small = trial.precision == "int8_dynamic" or not signature.dynamic_batch
    batch = job.target.batch if small else len(job.reference["probe"][0])
    batch = batch if signature.dynamic_batch else signature.batch
    outputs = candidate.outputs(job.data / split, batch, range(rows))
    before, after = job.outcomes(job.reference[split], split), job.outcomes(outputs, split)
    # the same function in FP32, verified on all probe rows: equal outcomes are no accident
    same = trial.precision == "fp32" and "+" not in trial.recipe and bool(np.array_equal(before, after))
    found = judged(job, outputs, (before, after), split, alpha, identical=same)
    found = dataclasses.replace(found, agreement=agreement(outputs[0], job.reference[split][0]))
    if trial.id == trial_id_of_baseline(job):
        found = dataclasses.replace(found, verdict="baseline")
    return dataclasses.replace(found, per_class=per_class(job, before, after, split))


def judged(
    job: Job,
    outputs: Sequence[Array],
    outcomes: tuple[Array, Array],
    split: str,
    alpha: float | None = None,
    *,
    identical: bool = False,
) -> Quality:
    """``outputs`` on a split against the original's. outcomes: both scores; identical: see ``judge``."""
    before, after = outcomes
    alpha = job.budget.alpha if alpha is None else alpha
    higher = job.score.higher_is_better
    if before.ndim == 0:

        def pair(index: Any) -> tuple[float, float]:
            rows = slice(None) if index is None else index
            cut = [output[rows] for output in job.reference[split]]
            part = dataclasses.replace(
                job,
                splits=dataclasses.replace(job.splits, **{split: getattr(job.splits, split).take(rows)}),
                reference={**job.reference, split: cut},
            )
            return float(part.outcomes(cut, split)), float(part.outcomes([o[rows] for o in outputs], split))

        rows = len(getattr(job.splits, split))
        return judge_whole(pair, rows, job.allowed, higher_is_better=higher, seed=job.seed, alpha=alpha)
    return judge(before, after, job.allowed, higher_is_better=higher, identical=identical, alpha=alpha)


def trial_id_of_baseline(job: Job) -> str:
    return trial_id(parse_recipe(job.origin.baseline))


def agreement(mine: Array, theirs: Array) -> float | None:
    """Share of samples whose most likely class is the original's; None when there are no classes."""
    if mine.ndim < 2 or mine.shape[1] < 2:
        return None
    return float((mine.argmax(1) == theirs.argmax(1)).mean())


def per_class(job: Job, before: Array, after: Array, split: str) -> tuple[Mapping[str, Any], ...]:
    """Score before and after for each class, where there are between 2 and 200 of them."""
    import numpy as np

    targets = getattr(job.splits, split).targets
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iu" or before.ndim != 1:
        return ()
    labels = np.unique(targets)
    if not 2 <= len(labels) <= 200:
        return ()
    return tuple(
        {
            "class": job.classes[label] if label < len(job.classes) else str(label),
            "before": float(before[targets == label].mean()),
            "after": float(after[targets == label].mean()),
            "n": int((targets == label).sum()),
        }
        for label in labels.tolist()
    )


def timed(
    workshop: Workshop,
    candidate: Candidate,
    measured: Measurement,
    trial: Trial,
    trials: Sequence[Trial],
    pace: Pace,
) -> Measurement:
    """Interleaved rounds with eager, torch.compile and FP32 in the same runtime."""
    against = baselines(workshop.job, trial, trials)
    opened, failed = workshop.baselines(against)
    pairs = [(name, trial.id) for name in opened]
    rounds = interleave(opened | {trial.id: candidate}, pairs, pace, workshop.job.seed)
    rounds.failed |= failed
    eager = trial_id_of_baseline(workshop.job)
    for name in (trial.id, eager):
        if error := rounds.failed.get(name):
            raise error
    return dataclasses.replace(
        measured,
        timing=timing(candidate, trial.id, rounds),
        speedup=ratio(rounds, eager, trial.id, workshop.job.seed),
        speedup_compiled=ratio(rounds, COMPILED, trial.id, workshop.job.seed),
        speedup_same_runtime=ratio(rounds, plain_id(trial), trial.id, workshop.job.seed),
    )


def baselines(job: Job, trial: Trial, trials: Sequence[Trial]) -> list[str]:
    """Ids of the earlier trials this one is timed beside."""
    usable = {t.id for t in trials if t.measurement and t.measurement.timing}
    wanted = dict.fromkeys([trial_id_of_baseline(job), COMPILED, plain_id(trial)])
    return [name for name in wanted if name in usable and name != trial.id]


def timing(candidate: Candidate, name: str, rounds: Rounds) -> Timing:
    return Timing(
        samples_s=tuple(rounds.samples_s[name]),
        rounds_s=tuple(block for opening in rounds.blocks_s[name] for block in opening),
        openings=len(rounds.blocks_s[name]),
        load_s=candidate.load_s,
        first_call_s=candidate.first_call_s,
        peak_memory_bytes=candidate.peak_memory_bytes,
    )


def ratio(rounds: Rounds, base: str, name: str, seed: int) -> Ratio | None:
    """How much faster ``name`` is than ``base``; None when ``base`` was not timed beside it."""
    if name == base:
        return Ratio(1.0, 1.0, 1.0, "baseline", base)
    if base not in rounds.blocks_s or base in rounds.failed:
        return None
    return rounds.ratio(base, name, seed)


def decide(measured: Measurement, job: Job, trials: Sequence[Trial]) -> tuple[str, str]:
    """Status and reason of a measured trial."""
    if failure := measured.verification.failure:
        return "failed", f"verification: {failure}"
    stands_in = measured.verification.stands_in
    if measured.quality is None or not (stands_in or (measured.timing and measured.speedup)):
        raise MeasureFailed("a measurement is missing")
    if measured.quality.verdict == "baseline":
        return "kept", "baseline"
    if reason := against_budget(measured.quality) or against_limits(measured, job.budget):
        return "rejected", reason
    if measured.speedup is None:
        status = measured.verification.status
        return "kept", f"within budget; {status}, not measured on this host: {stands_in}"
    return worth(measured, measured.speedup, trials)


def against_budget(found: Quality) -> str:
    """Why the accuracy budget forbids it, or an empty string."""
    if found.verdict == "over":
        return "over the accuracy budget"
    if found.verdict == "undecided":
        more = f": about {found.more_samples} more samples would settle it" if found.more_samples else ""
        return f"undecided against the budget{more}"
    return ""


def against_limits(measured: Measurement, budget: Budget) -> str:
    """Which limit on size or latency it breaks, or an empty string."""
    size, latency = budget.max_size_bytes, budget.max_latency_s
    if size is not None and measured.size_bytes > size:
        return "larger than the size limit"
    if latency is not None and measured.timing and percentiles(measured.timing.samples_s)["p50"] > latency:
        return "slower than the latency limit"
    return ""


def worth(measured: Measurement, speed: Ratio, trials: Sequence[Trial]) -> tuple[str, str]:
    """Whether the trial gains anything over the baseline."""
    base = next((t.measurement for t in trials if t.id == speed.against), None)
    smaller = base is None or measured.size_bytes < base.size_bytes
    if speed.verdict == "slower" and not smaller:
        return "rejected", "slower than the baseline and not smaller"
    same = measured.speedup_same_runtime
    if same is not None and same.verdict == "slower":
        return "kept", "within budget; slower here than FP32 in the same runtime"
    return "kept", "within budget"
