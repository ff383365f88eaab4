"""The main job: propose a recipe, build it, measure it, judge it, remember it; then conclude."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from karui import journal, presets, runtimes
from karui.bench.remote import machine_at
from karui.bench.rounds import Pace
from karui.budget import Budget
from karui.errors import BuildFailed, KaruiError, MissingRuntime, UsageError
from karui.measurement import Trial
from karui.optimize.admit import ask_of, refusal, refusal_of
from karui.optimize.attempt import attempt, plain_of, trial_id_of_baseline
from karui.optimize.conclude import Conclusion, conclude
from karui.optimize.crew import Crew, Help, hired
from karui.optimize.home import check_room, run_folder
from karui.optimize.job import Job, identity, save_data
from karui.optimize.made import Made
from karui.optimize.plan import Composed, Plan, allowed_points
from karui.optimize.prepare import prepare
from karui.optimize.record import journal_json, read_trial
from karui.optimize.result import Result, document
from karui.optimize.screening import Looks, looks, screened_json
from karui.optimize.watch import Silent, Watcher
from karui.optimize.workshop import Workshop
from karui.process import Limits
from karui.recipe import Named, Recipe, parse_recipe
from karui.report import write
from karui.search.enumerate import Aim, goal_met
from karui.target import Target
from karui.task import Task


@dataclass(frozen=True)
class Settings:
    """How a run goes about its work.

    recipes: texts to try instead of the target's preset. stop_at: stop trying once a kept candidate
    is surely this many times faster than the baseline. mixed: models with some layers in float that are
    tried at most for each INT8 one that misses the budget. search: recipes that are composed after those,
    each where the trials before it say that it may be the best. screen: of those that train, so many are
    looked at with a part of the training and of the data for each that is tried; 0 for none. help: who
    builds beside this process, which decides and times. pace: rounds of a trial; final: of the end.
    watcher: hears how it goes. words: what ``karui resume`` needs to call the run again.
    """

    recipes: tuple[str, ...] = ()
    stop_at: float | None = None
    mixed: int = 4
    search: int = 0
    screen: int = 3
    help: Help = Help()
    pace: Pace = Pace()
    final: Pace = Pace(least=25, most=200, seconds=25.0, openings=5, most_openings=10)
    limits: Limits = Limits()
    seed: int = 0
    command: str = ""
    watcher: Watcher = Silent()
    words: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("mixed", "search", "screen"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"{name} is a number of recipes, not {getattr(self, name)}", fix="0 for none"
                )
        if self.screen == 1:
            raise UsageError(
                "one recipe cannot be screened", why="it is told from others", fix="2, or 0 for none"
            )


def run(task: Task, target: Target, budget: Budget, folder: Path, settings: Settings) -> Result:
    """Start the run in ``folder``, or go on with it where its journal ends.

    Raises UsageError, and leaves ``folder`` as it was, for a job that cannot be measured.
    """
    start = time.monotonic()
    if target.on:
        settings.watcher.stage(f"connecting to {target.on}")
    with run_folder(folder, settings.words), machine_at(target.on) as machine:
        learns = trains(task)
        wanted = wanted_recipes(target, budget, settings, trains=learns)
        settings.watcher.stage("reading model and data")
        job = prepare(task, target, budget, folder, settings.seed)
        job = with_baseline(dataclasses.replace(job, machine=machine), wanted)
        recipes, refused = admit(job, wanted)
        plan = planned(job, recipes, settings, trains=learns)
        trials = remembered(job, recipes)
        with Workshop(job, settings.limits, settings.watcher.training) as workshop:
            with hired(job, settings.limits, settings.help, settings.watcher.stage) as crew:
                begin(workshop, recipes)
                refused += try_all(workshop, plan, crew, trials, settings)
            settings.watcher.stage("finalists side by side, then the confirmation split")
            ended = conclude(workshop, trials, settings.final)
        return finish(job, ended, refused, settings, time.monotonic() - start)


def begin(workshop: Workshop, recipes: Sequence[Recipe]) -> None:
    """Capture the original and write the data; only then is anything remembered of this run."""
    job = workshop.job
    try:
        workshop.source(parse_recipe(job.origin.baseline))
    except BuildFailed as error:
        check_room(job.folder)
        raise UsageError(error.what, why=error.why, fix=error.fix) from error
    save_data(job)
    journal.mend(job.folder)
    if not journal.read(job.folder):
        mine = identity(job, [str(recipe) for recipe in recipes])
        where = {"on": job.target.on, **job.machine.portrait()}
        journal.append(job.folder, {"event": "start", "identity": mine, "host": where})


def planned(job: Job, recipes: Sequence[Recipe], settings: Settings, *, trains: bool) -> Plan:
    """Raises MissingRuntime for a search without the package that samples."""
    composed = None
    if settings.search:
        space = presets.space(job.target.name, job.budget, trains=trains).on(job.target.runtimes)
        aim = Aim(job.allowed, job.budget.objective, job.seed)
        screen = 0 if job.finetune else settings.screen  # the user's own training has no shorter form
        composed = Composed(space, allowed_points(job, space), aim, settings.search, screen)
        for event in journal.read(job.folder):  # those of an interrupted run
            composed.hear(event)
    return Plan(recipes, named=bool(settings.recipes), mixed=settings.mixed, composed=composed)


def try_all(
    workshop: Workshop, plan: Plan, crew: Crew | None, trials: list[Trial], settings: Settings
) -> list[dict[str, Any]]:
    """The loop; adds to ``trials`` and returns what was left untried, with the reason."""
    job, start = workshop.job, time.monotonic()
    if plan.composed and (crew or plan.composed.screen):
        plan.composed.at_once = crew.at_once if crew else 1
        plan.composed.tell = partial(journal.append, job.folder)
    with looks(workshop, settings.pace) as screen:
        while (recipe := plan.next(trials) or plan.to_screen) is not None:
            if reason := enough(job, trials, settings, start):
                return plan.left_out(trials) + [refusal(left, reason) for left in plan.listed(trials)]
            if recipe == plan.to_screen:
                look_at(recipe, screen, plan, settings.watcher)
                continue
            made = crew.made(recipe, plan.coming(trials)) if crew else None
            settings.watcher.trial(str(recipe), len(trials), max(plan.expected, len(trials) + 1))
            trials.append(tried(workshop, recipe, trials, settings.pace, made))
            settings.watcher.done(trials[-1])
    return plan.left_out(trials)


def look_at(recipe: Recipe, looks: Looks, plan: Plan, watcher: Watcher) -> None:
    """Screen one recipe of the field; the journal and the plan hear of it."""
    assert plan.composed is not None
    watcher.stage(f"screening {recipe}")
    began = time.monotonic()
    one = looks.take(recipe)
    seconds = round(time.monotonic() - began, 3)
    plan.composed.note({"event": "screened", "seconds": seconds, "screened": screened_json(one)})


def tried(
    workshop: Workshop, recipe: Recipe, trials: Sequence[Trial], pace: Pace, made: Made | None
) -> Trial:
    """A trial that stands in the journal. Raises KaruiError where the original itself fails."""
    job, began = workshop.job, time.monotonic()
    trial = attempt(workshop, recipe, trials, pace, made)
    if trial.id == trial_id_of_baseline(job) and not trial.kept:
        log = f"see {job.folder / (trial.log or '')}"
        raise KaruiError("the original model itself could not be measured", why=trial.reason, fix=log)
    seconds = round(time.monotonic() - began, 3)
    journal.append(job.folder, {"event": "trial", "seconds": seconds, "trial": journal_json(trial)})
    return trial


def finish(
    job: Job, ended: Conclusion, refused: list[dict[str, Any]], settings: Settings, duration_s: float
) -> Result:
    facts = document(job, ended, refused, settings.command, round(duration_s, 1))
    write(facts, job.folder)
    journal.append(
        job.folder, {"event": "end", "best": ended.best, "exit_code": facts["verdict"]["exit_code"]}
    )
    return Result(job.folder, facts)


def enough(job: Job, trials: Sequence[Trial], settings: Settings, start: float) -> str:
    """Why to stop trying before the list ends, or an empty string."""
    limit = job.budget.time_s
    if limit is not None and trials and time.monotonic() - start > 0.8 * limit:
        return "the time was up"
    met = goal_met(trials, trial_id_of_baseline(job), settings.stop_at)
    return f"{met.id} met the goal of {settings.stop_at:g}x" if met else ""


def trains(task: Task) -> bool:
    """Whether the task has something to train with, and Fabric is there to do it."""
    return (task.train is not None or task.finetune is not None) and bool(find_spec("lightning_fabric"))


def wanted_recipes(target: Target, budget: Budget, settings: Settings, *, trains: bool) -> list[Recipe]:
    """The recipes asked for, or the target's preset; restricted to the target's runtimes."""
    preset = presets.recipes(target.name, budget, trains=trains)
    for name in target.runtimes:
        runtimes.usable(Named(name))
    found = [parse_recipe(text) for text in settings.recipes] or preset
    left = [recipe for recipe in found if not target.runtimes or recipe.runtime.name in target.runtimes]
    if not left:
        why = f"none is for {', '.join(target.runtimes)}"
        raise UsageError("no recipe is left to try", why=why, fix="name other runtimes or other recipes")
    return left


def with_baseline(job: Job, wanted: Sequence[Recipe]) -> Job:
    """Where another machine cannot run the original in PyTorch, FP32 in a runtime it has stands in."""
    usual = parse_recipe(job.origin.baseline).runtime.name
    job = dataclasses.replace(job, notes=(*job.notes, *job.machine.notes()))
    if not job.target.on or not (reason := job.machine.lacks(usual)):
        return job
    ask = ask_of(job)
    plain = dict.fromkeys(parse_recipe(f"fp32@{recipe.runtime.name}") for recipe in wanted)
    usable = (r for r in plain if not (job.machine.lacks(r.runtime.name) or refusal_of(r, ask)))
    if (first := next(usable, None)) is None:
        return job
    note = f"{usual} is {reason}: ratios are taken against {first}"
    origin = dataclasses.replace(job.origin, against=str(first))
    return dataclasses.replace(job, origin=origin, notes=(*job.notes, note))


def admit(job: Job, wanted: Sequence[Recipe]) -> tuple[list[Recipe], list[dict[str, Any]]]:
    """Recipes that can be tried, baselines first, and those refused with a reason, at no cost.

    Raises UsageError, or MissingRuntime, when none of those wanted can be tried.
    """
    ask = ask_of(job)

    def why_not(recipe: Recipe) -> str | None:
        return refusal_of(recipe, ask) or job.machine.lacks(recipe.runtime.name)

    base = parse_recipe(job.origin.baseline)
    if reason := why_not(base):
        raise UsageError("the baseline cannot run", why=reason)
    admitted = [base]
    refused: dict[str, dict[str, Any]] = {}
    for recipe in wanted:
        if reason := why_not(recipe):
            refused[str(recipe)] = refusal(recipe, reason)
        else:  # what is refused needs nothing to be compared with
            admitted += [one for one in (plain_of(recipe), recipe) if not why_not(one)]
    admitted = list(dict.fromkeys(admitted))
    if not set(admitted) & set(wanted):
        reasons = "; ".join(f"{entry['recipe']}: {entry['reason']}" for entry in refused.values())
        missing = all(is_missing(recipe) or job.machine.lacks(recipe.runtime.name) for recipe in wanted)
        kind = MissingRuntime if missing else UsageError
        raise kind("no recipe can be tried", why=reasons, fix="karui doctor")
    return admitted, list(refused.values())


def is_missing(recipe: Recipe) -> bool:
    try:
        runtimes.usable(recipe.runtime)
    except MissingRuntime:
        return True
    return False


def remembered(job: Job, recipes: Sequence[Recipe]) -> list[Trial]:
    """Trials of an earlier, interrupted run in the same folder; its job must be the same."""
    mine = identity(job, [str(recipe) for recipe in recipes])
    events = journal.read(job.folder)
    started = next((event for event in events if event.get("event") == "start"), None)
    if started is None:
        return []
    if different := [key for key, value in mine.items() if started["identity"].get(key) != value]:
        raise UsageError(
            f"{job.folder} belongs to another run",
            why=f"different: {', '.join(different)}",
            fix="choose another --out, or call it as it was called first",
        )
    return [read_trial(event["trial"]) for event in events if event.get("event") == "trial"]
