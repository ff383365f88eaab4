"""First looks at recipes: the build and the run of a trial, with less training, data and rounds.

They are taken by the process that decides, one after the other, while no builder beside it works.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from karui.bench.candidate import Candidate
from karui.bench.rounds import Pace, interleave
from karui.bench.stats import LEAST_ROUNDS
from karui.data import Splits, shuffled
from karui.errors import KaruiError, Unreachable
from karui.measurement import Measurement
from karui.optimize.attempt import checked, ratio, timing, trial_id_of_baseline, untried
from karui.optimize.home import check_room
from karui.optimize.job import Job, probe_rows, save_data
from karui.optimize.record import dict_or_none, read_measurement
from karui.optimize.workshop import Workshop
from karui.recipe import Recipe
from karui.search.screen import Screened

if TYPE_CHECKING:
    from karui.data import Array

EFFORT = 0.1  # of the steps of a training
SHARE = 0.25  # of the splits and of the rounds
LEAST = {"calibrate": 64, "select": 256}  # samples


@final
class Looks:
    """In the folder ``screen`` of a run, which is gone at its end. pace: that of a trial."""

    def __init__(self, workshop: Workshop, pace: Pace) -> None:
        self.workshop, self.pace = workshop, shorter(pace)

    @cached_property
    def low(self) -> Workshop:
        job = lowered(self.workshop.job)
        shutil.rmtree(job.folder, ignore_errors=True)
        save_data(job)
        return self.workshop.beside(job)

    def take(self, recipe: Recipe) -> Screened:
        """A look at ``recipe``; an empty one where the connection to the machine was lost."""
        name = untried(recipe).id
        try:
            found = self.seen(recipe)
        except Unreachable:
            return Screened(str(recipe), EFFORT)
        except KaruiError as error:
            check_room(self.workshop.job.folder)
            return Screened(str(recipe), EFFORT, failure=error.line)
        finally:
            shutil.rmtree(self.low.job.folder / "trials" / name, ignore_errors=True)
        failure = found.verification.failure
        return Screened(str(recipe), EFFORT, found, f"verification: {failure}" if failure else "")

    def seen(self, recipe: Recipe) -> Measurement:
        trial, start = untried(recipe), time.monotonic()
        artifact = self.low.build(recipe, trial.id)
        build_s = time.monotonic() - start
        with self.low.measured(artifact, trial.id) as candidate:
            found = checked(self.low.job, candidate, trial)
            if not (found.verification.failure or candidate.stands_in):
                found = self.timed(candidate, found, trial.id)
        return dataclasses.replace(found, build_s=build_s, executed={})

    def timed(self, candidate: Candidate, found: Measurement, name: str) -> Measurement:
        """Beside the original, as it is open for the trials."""
        job = self.workshop.job
        base = trial_id_of_baseline(job)
        pair = {base: self.workshop.baseline(base), name: candidate}
        rounds = interleave(pair, [(base, name)], self.pace, job.seed)
        for error in rounds.failed.values():
            raise error
        told = dataclasses.replace(timing(candidate, name, rounds), samples_s=())
        return dataclasses.replace(found, timing=told, speedup=ratio(rounds, base, name, job.seed))


@contextmanager
def looks(workshop: Workshop, pace: Pace) -> Iterator[Looks]:
    try:
        yield Looks(workshop, pace)
    finally:
        shutil.rmtree(screen_folder(workshop.job), ignore_errors=True)


def shorter(pace: Pace) -> Pace:
    least = max(LEAST_ROUNDS, round(SHARE * pace.least))
    return Pace(least, max(least, round(SHARE * pace.most)), SHARE * pace.seconds, pace.half_width)


def lowered(job: Job) -> Job:
    """With a part of the data, drawn by the seed, and of the training; without the confirmation split."""
    chosen = rows_of(job, "select")
    select = job.splits.select.take(chosen)
    calibrate = job.splits.calibrate.take(rows_of(job, "calibrate"))
    answers = [output[chosen] for output in job.reference["select"]]
    probe = [output[: probe_rows(select, job.target.batch)] for output in answers]
    return dataclasses.replace(
        job,
        folder=screen_folder(job),
        splits=Splits(calibrate, select, select),
        reference={"select": answers, "confirm": answers, "probe": probe},
        effort=EFFORT,
    )


def rows_of(job: Job, what: str) -> Array:
    """Whole batches, for a model that takes no others."""
    size, batch = len(getattr(job.splits, what)), job.signature.batch
    count = max(round(SHARE * size), LEAST[what])
    if not job.signature.dynamic_batch:
        count = -(-count // batch) * batch
    rows = shuffled(size, job.seed)[:count]
    rows.sort()
    return rows


def screen_folder(job: Job) -> Path:
    return job.folder / "screen"


def screened_json(one: Screened) -> dict[str, Any]:
    """For the journal."""
    return dataclasses.asdict(one)


def read_screened(facts: Mapping[str, Any]) -> Screened:
    look = facts["look"]
    return Screened(**{**facts, "look": read_measurement(look) if look else None})


def shown(one: Screened) -> dict[str, Any]:
    """For the result, beside the reason why there is no trial."""
    return {
        "effort": one.effort,
        "quality": dict_or_none(one.quality and dataclasses.replace(one.quality, per_class=())),
        "speedup": dict_or_none(one.look and one.look.speedup),
        "size_bytes": one.look.size_bytes if one.look else None,
    }
