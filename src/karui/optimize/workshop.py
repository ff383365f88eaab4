"""What a run keeps open while it works: the builder, captured models, baselines under measurement."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from karui import host, runtimes, techniques
from karui.artifact import Artifact, Signature, load_artifact, publish, save_artifact
from karui.bench.candidate import Candidate, Opened
from karui.bench.machine import Conditions
from karui.builder import request
from karui.data import save_arrays
from karui.errors import BuildFailed, KaruiError, MeasureFailed, Unsupported, foreign
from karui.graph.call import run_all
from karui.graph.capture import capture
from karui.graph.inspect import private_copy
from karui.graph.ranges.table import Table, save_table
from karui.optimize.clock import RuntimeClock
from karui.optimize.job import Job
from karui.optimize.origin import copy_onnx
from karui.process import Child, Limits
from karui.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from karui.graph.training.loop import Watch

REASONS = 12  # for what was left as it was, in a result


class Builder:
    """The building process, started when it is first asked; a dead one is replaced."""

    def __init__(self, log: Path, threads: int, limits: Limits) -> None:
        self.log, self.threads, self.limits = log, threads, limits
        self.child: Child | None = None

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.child is None or self.child.process.poll() is not None:
            self.child = Child("karui.builder", [], self.log, self.threads, self.limits)
        try:
            return self.child.ask(message)
        except MeasureFailed as error:
            raise BuildFailed(error.what, why=error.why, fix=error.fix) from error

    def hang_up(self) -> None:
        if self.child:
            self.child.hang_up()

    def close(self) -> None:
        if self.child:
            self.child.close()


class Workshop:
    """A context manager; on leaving, every process it started is ended.

    threads: of the builder, 0 for all.
    """

    def __init__(self, job: Job, limits: Limits, watch: Watch | None = None, threads: int = 0) -> None:
        self.job, self.limits, self.watch = job, limits, watch
        self.threads = threads or os.cpu_count() or 1
        self.builder = Builder(job.folder / "builder.log", self.threads, limits)
        self.captured: dict[str, tuple[Path, Signature]] = {}
        self.accounts: dict[str, Mapping[str, Any]] = {}
        self.refused: dict[str, KaruiError] = {}
        self.opened = Opened()

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.builder.hang_up()
        self.opened.close()
        self.builder.close()

    def beside(self, job: Job) -> Workshop:
        """One for another job, with the same building process, which this one ends."""
        other = Workshop(job, self.limits, self.watch, self.threads)
        other.builder = self.builder
        return other

    def build(self, recipe: Recipe, trial_id: str) -> Artifact:
        """Build the artifact of a trial; it appears under its final name when it is whole."""
        home = self.job.folder / "trials" / trial_id
        shutil.rmtree(home, ignore_errors=True)
        draft = home / "draft"
        draft.mkdir(parents=True)
        self.write(self.source(recipe), recipe, draft)
        publish(draft, home / "artifact")
        return load_artifact(home / "artifact")

    def artifact_of(self, model: nn.Module | None, recipe: Recipe, folder: Path) -> Artifact:
        """An artifact that is no trial, of ``model`` (consumed) instead of the original: for timing only."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "artifact").mkdir(parents=True)
        source = self.source(recipe)
        if model is not None:
            signature, example = self.job.signature, self.job.example
            data = self.job.splits.calibrate.inputs
            captured = capture(model, signature, example, folder / "source", cast_of(recipe), data)
            source = folder / "source", captured
        return self.write(source, recipe, folder / "artifact")

    def write(self, source: tuple[Path, Signature], recipe: Recipe, draft: Path) -> Artifact:
        """Build ``source`` into the empty folder ``draft``."""
        signature, threads = source[1], self.job.target.threads
        message = request(source[0], signature, recipe, self.job.data, draft, self.job.target)
        message["flags"] = sorted(self.job.machine.flags())
        with foreign(BuildFailed, "the build failed"):
            answer = self.builder.ask(message)
        artifact = Artifact(
            folder=draft,
            recipe=str(recipe),
            runtime=recipe.runtime.name,
            signature=signature,
            threads=threads,
            executed=answer["executed"] | self.account(recipe),
            versions=host.versions(),
            host=self.job.machine.portrait(),
        )
        save_artifact(artifact)
        return artifact

    def source(self, recipe: Recipe) -> tuple[Path, Signature]:
        """The captured model with the recipe's steps applied, cast where the runtime wants it so."""
        cast = cast_of(recipe)
        key = "-".join([cast, *([steps_key(recipe)] if recipe.steps else [])])
        if key not in self.captured:
            self.captured[key] = self.capture(recipe, cast, self.job.folder / "model" / key)
        return self.captured[key]

    def capture(self, recipe: Recipe, precision: str, folder: Path) -> tuple[Path, Signature]:
        shutil.rmtree(folder, ignore_errors=True)
        origin, signature = self.job.origin, self.job.signature
        if origin.model is None:
            assert origin.path is not None
            folder.mkdir(parents=True)
            copy_onnx(origin.path, folder / "model.onnx")
            return folder, signature
        if (key := steps_key(recipe)) in self.refused:
            raise self.refused[key]
        try:
            model, accounts, ranges = self.changed(private_copy(origin.model), recipe)
        except KaruiError as error:
            self.refused[key] = error  # steps can take long; another precision would hear the same
            raise
        data = self.job.splits.calibrate.inputs
        captured = capture(model, signature, self.job.example, folder, precision, data)
        if ranges:
            save_table(ranges, folder)
        if accounts:
            (folder / "steps.json").write_text(json.dumps(accounts, indent=1), encoding="utf-8")
        return folder, captured

    def changed(self, model: nn.Module, recipe: Recipe) -> tuple[nn.Module, dict[str, Any], Table]:
        """``model`` after the recipe's steps, the account of each, and what they learned of its ranges."""
        job, accounts, ranges = self.job, dict[str, Any](), Table()
        clock = self.clock(recipe)
        for number, step in enumerate(recipe.steps):
            given = dataclasses.replace(
                given_of(job),
                clock=clock,
                ranges=ranges,
                folder=self.training(recipe, number),
                watch=self.watch,
                known=job.folder / "known",
            )
            with closing(clock):
                applied = techniques.load(step).apply(model, given)
            if not applied.touched:
                why = "; ".join(f"{name}: {reason}" for name, reason in list(applied.skipped.items())[:3])
                raise Unsupported(f"{step} found nothing to change in this model", why=why)
            model = applied.model
            ranges = ranges.with_(applied.ranges or {})
            accounts[str(step)] = {
                "touched": list(applied.touched),
                "skipped": dict(applied.skipped),
                "facts": dict(applied.facts),
            }
        if recipe.steps:
            self.accounts[steps_key(recipe)] = accounts
            self.keep_answers(model, reference_folder(self.job.data, recipe))
        return model, accounts, ranges

    def training(self, recipe: Recipe, number: int) -> Path:
        """Where the step of that number keeps its checkpoints: for all recipes that begin alike."""
        begun = dataclasses.replace(recipe, steps=recipe.steps[: number + 1])
        return self.job.folder / "training" / steps_key(begun)

    def clock(self, recipe: Recipe) -> RuntimeClock:
        """Of the recipe's runtime and precision; what it remembers holds for models of this structure."""
        target = self.job.target
        facts: dict[str, Any] = {"batch": target.batch, "threads": target.threads}
        facts |= self.job.machine.identity()
        if len(recipe.steps) > 1:  # the original is not what the technique sees
            facts["original"] = self.job.origin.digest
        return RuntimeClock(self, recipe, self.job.folder / "timing", facts, self.job.seed)

    def keep_answers(self, model: nn.Module, folder: Path) -> None:
        """A changed model is what its artifacts are verified against; the task's score judges the change."""
        rows, signature = len(self.job.reference["probe"][0]), self.job.signature
        inputs = {name: array[:rows] for name, array in self.job.splits.select.inputs.items()}
        answers = run_all(model, signature.style, inputs)
        shutil.rmtree(folder, ignore_errors=True)
        save_arrays(dict(zip((port.name for port in signature.outputs), answers)), folder)

    def account(self, recipe: Recipe) -> dict[str, Any]:
        """What the recipe's steps did, short enough for a table; all of it is in ``steps.json``."""
        if not recipe.steps:
            return {}
        accounts = self.accounts.get(steps_key(recipe), {})
        return {"steps": {step: in_short(account) for step, account in accounts.items()}}

    def open(self, artifact: Artifact) -> Candidate:
        """A fresh worker for ``artifact``, loaded and ready."""
        candidate = self.worker(artifact)
        try:
            candidate.load()
        except BaseException:
            candidate.close()
            raise
        return candidate

    def worker(self, artifact: Artifact) -> Candidate:
        """A fresh worker that has loaded nothing yet."""
        target = self.job.target
        batch = target.batch if artifact.signature.dynamic_batch else artifact.signature.batch
        conditions = Conditions(batch, target.threads, self.limits, self.job.machine)
        return Candidate(artifact, self.job.data, artifact.folder.parent, conditions)

    @contextmanager
    def measured(self, artifact: Artifact, trial_id: str) -> Iterator[Candidate]:
        """A fresh worker for the trial; plain FP32 that was timed stays open, as later trials' baseline."""
        candidate = self.open(artifact)
        try:
            yield candidate
            if candidate.call_s and trial_id.endswith("-fp32"):
                self.opened.now[trial_id] = candidate
        finally:
            if self.opened.now.get(trial_id) is not candidate:
                candidate.close()

    def baseline(self, trial_id: str) -> Candidate:
        """The worker of an earlier trial, opened once and kept; a dead one is opened again."""
        opened, failed = self.baselines([trial_id])
        if failed:
            raise failed[trial_id]
        return opened[trial_id]

    def baselines(self, trial_ids: Sequence[str]) -> tuple[dict[str, Candidate], dict[str, KaruiError]]:
        """The workers of earlier trials, and why others would not open a second time."""
        known = self.opened.now
        alive = {n: known[n] for n in trial_ids if n in known and known[n].child.alive}
        fresh, failed = self.fresh([name for name in trial_ids if name not in alive])
        found, refused = self.opened.add(fresh)
        return alive | found, failed | refused

    def anew(self, trial_ids: Sequence[str]) -> tuple[dict[str, Candidate], dict[str, KaruiError]]:
        """The same in fresh processes; whatever was open is closed."""
        self.opened.close()
        return self.baselines(trial_ids)

    def fresh(self, trial_ids: Sequence[str]) -> tuple[dict[str, Candidate], dict[str, KaruiError]]:
        """Workers of earlier trials that have loaded nothing yet, and why others have none."""
        made: dict[str, Candidate] = {}
        failed: dict[str, KaruiError] = {}
        for name in trial_ids:
            try:
                made[name] = self.worker(load_artifact(self.job.folder / "trials" / name / "artifact"))
            except KaruiError as error:
                failed[name] = error
        return made, failed


def given_of(job: Job) -> techniques.Given:
    """What a technique may use of a job."""
    return techniques.Given(
        job.example,
        job.splits.calibrate.inputs,
        job.signature,
        job.train,
        teacher=job.teacher,
        finetune=job.finetune,
        student=job.student,
        flags=job.machine.flags(),
        effort=job.effort,
    )


def cast_of(recipe: Recipe) -> str:
    """The precision that the model is cast to in torch."""
    precision = recipe.numerics.default
    return precision if runtimes.load(recipe.runtime).casts_in_torch(precision) else "fp32"


def is_timed(recipe: Recipe) -> bool:
    """Whether a step of it asks the clock."""
    return any(techniques.find(step.name).TIMED.intersection(dict(step.options)) for step in recipe.steps)


def steps_key(recipe: Recipe) -> str:
    """Recipes with the same steps share their outcome, unless a step aims at a runtime."""
    aim = [digest(f"{recipe.numerics}@{recipe.runtime}")] if is_timed(recipe) else []
    return "-".join([*(digest(str(step)) for step in recipe.steps), *aim])


def reference_folder(data: Path, recipe: Recipe) -> Path:
    """Where the answers of the model that ``recipe`` starts from lie: the original's, or the changed
    one's.
    """
    return data / "reference" / (f"steps-{steps_key(recipe)}" if recipe.steps else "probe")


def in_short(account: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, short facts, and how often each reason kept something as it was."""
    reasons = Counter(account["skipped"].values()).most_common(REASONS)
    facts = {key: value for key, value in account["facts"].items() if is_short(value)}
    return {"touched": len(account["touched"]), "left": dict(reasons)} | facts


def is_short(value: Any) -> bool:
    """A number, a word, or a few of them."""
    if isinstance(value, dict):
        return len(value) <= 64 and all(isinstance(part, (str, int, float)) for part in value.values())
    return not isinstance(value, list) or len(value) <= 4


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
