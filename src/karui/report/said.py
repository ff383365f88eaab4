"""Sentences that follow from a result, each named by the fact that makes it true."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from karui.errors import UsageError
from karui.recipe import Named, Recipe, parse_named, parse_recipe
from karui.report import fields, view, words
from karui.report.view import Quality, Run, Speed, Trial

RESOLUTION = 0.015  # of a speed-up, as the bench judges it


@dataclass(frozen=True)
class Said:
    """``recipe``: whom it is about, where that is not the subject. ``command``: what to type.

    option: what is new in the command, where that is the run's own call.
    """

    fact: str
    text: str
    recipe: str = ""
    command: str = ""
    option: str = ""


@dataclass(frozen=True)
class Part:
    key: str
    title: str
    said: tuple[Said, ...]


def part(key: str, title: str, said: Iterable[Said | None]) -> Part:
    return Part(key, title, tuple(one for one in said if one is not None))


def parsed(recipe: str) -> Recipe | None:
    """The recipe of a text; None for what this version cannot read."""
    try:
        return parse_recipe(recipe)
    except UsageError:
        return None


def steps_of(recipe: Recipe) -> list[str]:
    """Names of its techniques, those that ``iterative`` repeats as well."""
    return [name for step in recipe.steps for name in (step.name, *repeated(step))]


def repeated(step: Named) -> list[str]:
    """Its defaults where it names none."""
    if step.name != "iterative":
        return []
    options = dict(step.options)
    texts = [options.get("prune", "prune_weights"), *options.get("recover", ("finetune",))]
    try:
        return [parse_named(str(text)).name for text in texts]
    except UsageError:
        return []


def steps_in(text: str) -> set[str]:
    """The same of a recipe's text; empty for what cannot be read."""
    recipe = parsed(text)
    return set(steps_of(recipe)) if recipe else set()


# --- what comes first


def objective(run: Run) -> str:
    """latency, size or memory: what was to be least."""
    return fields.text(run.data, "budget", "objective") or "latency"


def cost(run: Run, trial: Trial) -> float | None:
    """What the objective counts, less is better; None where it was not measured."""
    if objective(run) == "size":
        return trial.size_bytes
    if objective(run) == "memory":
        return fields.number(trial.data, "peak_memory_bytes")
    return 1 / trial.speedup.ratio if trial.speedup else None


def cheaper(run: Run, one: Trial, other: Trial) -> bool:
    """Whether ``one`` shows less of what the objective counts, sure or not."""
    mine, theirs = cost(run, one), cost(run, other)
    return mine is not None and theirs is not None and mine < theirs


def beats(run: Run, one: Trial, other: Trial) -> bool:
    """The same, and surely."""
    return cheaper(run, one, other) and (objective(run) != "latency" or surely_faster(one, other))


def surely_faster(one: Trial, other: Trial) -> bool:
    """By the ratio of the two, where they were timed side by side; else where their intervals lie apart."""
    for trial, base, verdict in ((one, other, "faster"), (other, one, "slower")):
        for speed in (trial.same_runtime, trial.compiled):
            if speed and speed.against == base.id:
                return speed.verdict == verdict
    mine, theirs = one.speedup, other.speedup
    return bool(mine and theirs and mine.ratio > theirs.ratio and apart(mine, theirs))


def apart(one: Speed | None, other: Speed | None) -> bool:
    """Whether two intervals have nothing in common; False where one is missing."""
    if one is None or other is None or None in (one.low, one.high, other.low, other.high):
        return False
    return one.low > other.high or other.low > one.high  # type: ignore[operator]


def level_with(run: Run, best: Trial) -> list[Trial]:
    """Kept candidates whose speeds cannot be told from that of ``best``."""
    kept = [t for t in run.trials if t.status == "kept" and t is not best and t is not run.baseline]
    return [t for t in kept if t.speedup and t.speedup.low is not None and not surely_faster(best, t)]


def rival(run: Run) -> Trial | None:
    """What a candidate has to beat: the one chosen, else the original."""
    return run.best or run.baseline


# --- numbers


def told_apart(speed: Speed) -> str:
    """slower, same or few (too few rounds for a verdict, whatever the interval); empty for faster."""
    if speed.verdict != "no measurable difference":
        return "slower" if speed.slower else ""
    low, high = speed.low or 0.0, speed.high or math.inf
    return "few" if low > 1 + RESOLUTION or high < 1 / (1 + RESOLUTION) else "same"


def ratio(speed: Speed | None) -> str:
    """9.31x [9.15, 9.49]"""
    return " ".join(words.speed(speed)).strip()


def loss(run: Run, quality: Quality) -> str:
    """loses 2.35 points [1.46, 3.24], or: is worse by 0.002 [0.001, 0.003]."""
    if quality.drop is None:
        return ""
    gains, bounds = quality.drop < 0, (quality.low, quality.high)
    sign = -1.0 if gains else 1.0
    known = sorted(sign * bound for bound in bounds if bound is not None)
    numbers = [sign * quality.drop, *(known if len(known) == 2 else [])]
    decimals = words.signed_decimals(run, numbers)
    main, *ends = (plain(run, number, decimals) for number in numbers)
    verb = "gains" if gains else "loses" if quality.drop else "changes by"
    head = f"{verb} {main} points" if run.points else f"is {'better' if gains else 'worse'} by {main}"
    return head + (f" [{', '.join(ends)}]" if ends else "")


def screened(run: Run, item: fields.Json) -> str:
    """What a recipe showed that had a part of the training and was never measured; empty for any other."""
    seen, effort = fields.at(item, "screened"), fields.number(item, "screened", "effort")
    found = view.quality(fields.at(seen, "quality"))
    if effort is None or found is None or found.drop is None:
        return ""
    told = [f"{loss(run, found)} on {count(found.n or 0, 'sample')}", size_of(seen), speed_of(seen)]
    return f"with {words.percent(effort, 0)} of the training it {', '.join(filter(None, told))}"


def size_of(seen: fields.Json) -> str:
    size = fields.number(seen, "size_bytes")
    return f"takes {words.size(size)}" if size is not None else ""


def speed_of(seen: fields.Json) -> str:
    found = ratio(view.speed(fields.at(seen, "speedup")))
    return f"shows {found} against the original in few rounds" if found else ""


def plain(run: Run, value: float, decimals: int | None = None) -> str:
    """A difference of scores as people read it, without a plus."""
    return words.signed(run, value, decimals).lstrip("+")


def allowed(run: Run) -> str:
    """0.5 points allowed"""
    lost = words.lost_budget(run)
    return f"{lost} allowed" if lost else ""


def count(number: int, noun: str) -> str:
    """1 candidate, 1,234 candidates"""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def joined(names: Iterable[str]) -> str:
    """a, b and c"""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
