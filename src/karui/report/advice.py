"""What to try next: each piece of advice stands on a fact of the run, and comes with a command."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Sequence

from karui.numerics import Numerics
from karui.recipe import Named, Recipe
from karui.report import fields, words
from karui.report.command import again, has, is_bench, words_of
from karui.report.others import limit, refusal
from karui.report.said import (
    Part,
    Said,
    cheaper,
    count,
    joined,
    level_with,
    loss,
    objective,
    parsed,
    part,
    ratio,
    rival,
    steps_in,
    surely_faster,
)
from karui.report.view import Quality, Run, Trial

PRUNES = {"prune_channels", "prune_weights"}
LEARNS = {"finetune", "distill", "quantize_aware", "iterative"}
SEARCH = "20"  # recipes: what the page on searching begins with
MUCH = 0.8  # a size of this share or less is worth a word
NAMED = 3  # recipes that one sentence names
DATA = "FILE.py:NAME"


def advice(run: Run) -> Part:
    """In the order in which it is likely to help."""
    found = [
        more_samples(run),
        unconfirmed(run),
        looser(run),
        recovery(run),
        rounding(run),
        between(run),
        full_width(run),
        smaller(run),
        level(run),
        time_up(run),
        *missing(run),
        elsewhere(run),
        threads(run),
    ]
    return part("next", "What to try next", found)


def change(run: Run, fact: str, text: str, option: str, value: str, recipe: str = "") -> Said:
    """Advice to call the run again with one option changed."""
    return Said(fact, text, recipe, again(run, option, value), shlex.join([option, value]))


def promising(run: Run, *verdicts: str) -> list[Trial]:
    """Candidates that only the accuracy budget kept from being chosen, the best first."""
    other = rival(run)
    found = [
        trial
        for trial in run.trials
        if trial.quality and trial.quality.verdict in verdicts and trial.status == "rejected"
        if other and cheaper(run, trial, other) and not limit(run, trial)
    ]
    order = sorted(found, key=lambda trial: trial.speedup.ratio if trial.speedup else 0.0, reverse=True)
    return order if objective(run) == "latency" else sorted(found, key=lambda trial: trial.size_bytes or 0.0)


def gain(run: Run, trial: Trial) -> str:
    """What it shows beside the one chosen, or beside the original."""
    if objective(run) == "size":
        return f"{words.size(trial.size_bytes)} on disk"
    best, speed = run.best, ratio(trial.speedup) or words.NONE
    if best is None or best.speedup is None:
        return f"{speed} against the original"
    sure = "" if surely_faster(trial, best) else ", which is not surely less"
    return f"{speed} against the original (the one chosen: {ratio(best.speedup)}{sure})"


# --- data and budget


def more_samples(run: Run) -> Said | None:
    """Undecided candidates that would win."""
    found = [
        (trial, trial.quality, trial.quality.more_samples)
        for trial in promising(run, "undecided")
        if trial.quality and trial.quality.more_samples
    ]
    if not found:
        return None
    trial, quality, samples = min(found, key=lambda each: each[2])
    beside = f" beside the {words.count(quality.n)} there are" if quality.n else ""
    text = (
        f"More validation samples: about {samples:,}{beside} would settle {trial.recipe}, "
        f"which shows {gain(run, trial)}."
    )
    return change(run, "more_samples", text, "--select", DATA, trial.recipe)


def unconfirmed(run: Run) -> Said | None:
    """A candidate that the confirmation split left undecided."""
    looks = fields.objects(run.data, "confirm", "looks")
    ids = [fields.text(look, "trial") for look in looks if fields.text(look, "verdict") == "undecided"]
    names = [trial.recipe for trial in run.trials if trial.id in ids]
    if not names:
        return None
    n = fields.whole(run.data, "task", "splits", "confirm")
    held = f"The {n:,} samples" if n else "The samples"
    text = f"{held} kept for the end were too few to confirm {few(names)}: more would decide it."
    return change(run, "unconfirmed", text, "--confirm", DATA, names[0])


def looser(run: Run) -> Said | None:
    """The budget with which the best of those outside would have been inside, on the same samples."""
    for trial in promising(run, "over", "undecided"):
        needed = budget_for(run, trial.quality)
        if trial.quality and needed:
            shown = needed.replace("%", " %") if needed.endswith("%") else f"{needed} points"
            text = (
                f"A budget of {shown} would have let in {trial.recipe} on these samples: "
                f"it {loss(run, trial.quality)}, and shows {gain(run, trial)}."
            )
            return change(run, "looser_budget", text, "--max-drop", needed, trial.recipe)
    return None


def budget_for(run: Run, quality: Quality | None) -> str:
    """The drop to ask for, as the command line reads it: the interval's end, rounded up."""
    if quality is None or quality.high is None or quality.high <= 0:
        return ""
    base = run.baseline.quality.value if run.baseline and run.baseline.quality else None
    if run.budget.share is not None or not run.points:
        return f"{rounded_up(100 * quality.high / abs(base))}%" if base else ""
    return rounded_up(100 * quality.high)


def rounded_up(value: float) -> str:
    return f"{math.ceil(value * 100 - 1e-9) / 100:g}"


# --- steps


def uses(run: Run, techniques: set[str]) -> bool:
    """Whether any recipe of the run, tried or not, has one of these steps."""
    recipes = [trial.recipe for trial in run.trials] + [fields.text(item, "recipe") for item in run.refused]
    return any(techniques & steps_in(recipe) for recipe in recipes)


def recovery(run: Run) -> Said | None:
    """Pruned candidates that would win and lost too much, with nothing in the run that trains."""
    found = [trial for trial in promising(run, "over", "undecided") if PRUNES & steps_in(trial.recipe)]
    if not found or uses(run, LEARNS):
        return None
    text = (
        f"Without training, {found[0].recipe} did not hold the budget; it shows {gain(run, found[0])}. "
        "With data to train on, such networks recover first."
    )
    return change(run, "recovery", text, "--train", DATA, found[0].recipe)


def rounding(run: Run) -> Said | None:
    """INT8 that would win and lost too much, with nothing in the run that trains with rounding."""
    recipes = [
        parsed(trial.recipe) for trial in promising(run, "over", "undecided") if trial.precision == "int8"
    ]
    found = [
        recipe for recipe in recipes if recipe and not recipe.numerics.rules and held_in_fp32(run, recipe)
    ]
    if not found or uses(run, {"quantize_aware"}):
        return None
    one = found[0]
    trained = str(Recipe((*one.steps, Named("quantize_aware")), one.numerics, one.runtime))
    text = f"{one} did not hold the budget, and in FP32 it did. Training with the rounding may mend that."
    return change(run, "rounding", text, "--recipe", trained, str(one))


def held_in_fp32(run: Run, recipe: Recipe) -> bool:
    """Whether the same steps on the same runtime were inside the budget before the precision was lowered."""
    wanted = str(Recipe(recipe.steps, Numerics(), recipe.runtime))
    return any(trial.recipe == wanted and trial.status == "kept" for trial in run.trials)


def between(run: Run) -> Said | None:
    """One share held the budget, and the next, which is faster, did not."""
    recipes = [(trial, parsed(trial.recipe)) for trial in run.trials]
    mild = [(t, r) for t, r in recipes if t.status == "kept" and r and PRUNES & steps_in(t.recipe)]
    harsh = [(t, r) for t, r in recipes if t.quality and t.quality.verdict == "over" and r]
    pairs = [
        (kept, lost)
        for (kept, one), (lost, other) in itertools.product(mild, harsh)
        if one_number_apart(one, other) and cheaper(run, lost, kept)
    ]
    if not pairs or has(run, "--search"):
        return None
    kept, lost = pairs[0]
    text = f"{kept.recipe} held the budget and {lost.recipe} did not. A search tries other shares."
    return change(run, "between", text, "--search", SEARCH, kept.recipe)


def one_number_apart(one: Recipe, other: Recipe) -> bool:
    """The same steps, precision and runtime, but for the value of one numeric option."""
    same = one.numerics == other.numerics and one.runtime == other.runtime
    if not same or [step.name for step in one.steps] != [step.name for step in other.steps]:
        return False
    pairs = [(dict(a.options), dict(b.options)) for a, b in zip(one.steps, other.steps)]
    differing = [(a.get(key), b.get(key)) for a, b in pairs for key in {*a, *b} if a.get(key) != b.get(key)]
    return len(differing) == 1 and all(isinstance(value, (int, float)) for value in differing[0])


def full_width(run: Run) -> Said | None:
    """Every recipe left the network as it was, though it could be changed."""
    tried = [trial.recipe for trial in run.trials] + [fields.text(item, "recipe") for item in run.refused]
    given = " ".join(words_of(run)[2:3])
    changed = any(" + " in recipe for recipe in tried)
    if run.baseline is None or given.endswith(".onnx") or changed or is_bench(run) or has(run, "--search"):
        return None
    text = "Every candidate had the network's full width. A search also tries narrower ones."
    return change(run, "full_width", text, "--search", SEARCH)


# --- what else counts


def smaller(run: Run) -> Said | None:
    """A smaller artifact inside the budget that is not the one chosen."""
    best = run.best
    if best is None or best.size_bytes is None or objective(run) == "size":
        return None
    most = MUCH * best.size_bytes
    kept = [
        t for t in run.trials if t.status == "kept" and t.speedup and t.size_bytes and t.size_bytes <= most
    ]
    if not kept or is_bench(run):
        return None
    least = min(kept, key=lambda trial: trial.size_bytes or 0.0)
    text = (
        f"If bytes count more than time: {least.recipe} is inside the budget with "
        f"{words.size(least.size_bytes)}, where the one chosen takes {words.size(best.size_bytes)}."
    )
    return change(run, "smaller", text, "--max-size", str(round(least.size_bytes or 0)), least.recipe)


def level(run: Run) -> Said | None:
    """Others that the measurement could not tell from the one chosen."""
    if run.best is None or objective(run) != "latency" or "thorough" in words_of(run):
        return None
    found = [trial.recipe for trial in level_with(run, run.best)]
    if not found:
        return None
    text = f"Not surely slower than the one chosen: {few(found)}. Longer measurements narrow the intervals."
    return change(run, "level", text, "--pace", "thorough", found[0])


def time_up(run: Run) -> Said | None:
    left = [item for item in run.refused if fields.text(item, "reason") == "the time was up"]
    given_s = fields.number(run.data, "budget", "time_s")
    if not left or not given_s:
        return None
    text = (
        f"{count(len(left), 'recipe')} {'was' if len(left) == 1 else 'were'} not tried, as the time was up."
    )
    return change(run, "time_up", text, "--time", f"{2 * given_s:g}")


def missing(run: Run) -> list[Said]:
    """One line for each thing to install."""
    named: dict[Said, list[str]] = {}
    for said in [refusal(run, item) for item in run.refused]:
        if said.fact == "missing":
            named.setdefault(Said("missing", said.text, "", said.command), []).append(said.recipe)
    return [
        Said("missing", f"Not installed, so not tried: {few(recipes)}{needed(said)}.", "", said.command)
        for said, recipes in named.items()
    ]


def needed(said: Said) -> str:
    """What to install, where that is not one command."""
    return "" if said.command else f". It takes: {said.text}"


def elsewhere(run: Run) -> Said | None:
    """Kept, and made for a machine that this one is not."""
    found = [t for t in run.trials if t.status == "kept" and t.speedup is None and t.p50_s is None]
    artifact = fields.text(found[0].data, "artifact") if found else ""
    if not artifact:
        return None
    text = (
        f"{found[0].recipe} has no time yet. Its artifact is {artifact} in the run folder: time it elsewhere."
    )
    return Said("elsewhere", text, found[0].recipe, "karui bench ARTIFACT")


def threads(run: Run) -> Said | None:
    """More cores than threads: what is fastest may be another."""
    used, cores = fields.whole(run.data, "target", "threads"), fields.whole(run.data, "host", "cores")
    if not used or not cores or used >= cores:
        return None
    text = (
        f"Measured with {count(used, 'thread')} on {count(cores, 'core')}. With more, another may be fastest."
    )
    return change(run, "threads", text, "--threads", str(cores))


def few(recipes: Sequence[str]) -> str:
    """The first ones by name."""
    more = len(recipes) - NAMED
    return joined(recipes if more <= 0 else [*recipes[:NAMED], f"{more} more"])
