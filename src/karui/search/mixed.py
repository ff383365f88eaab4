"""Mending an INT8 model that misses the accuracy budget.

First the weights of a static one, with norms folded into them, are rounded with calibration data instead of
each to the nearest, and biases make up for what is left of each channel's mean. If that is not enough, layers
stay in float, with the weights they had. Layers differ by orders of magnitude in what their rounding does to
the answers. Those that disturb most for the multiplications they save go back to float first; how many have
to is found by bisection, each time with a whole trial on the runtime, so that the fastest that fits can be
chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from karui.measurement import Trial
from karui.numerics import Numerics
from karui.recipe import Named, Recipe, parse_recipe

FIRST = 0.1  # of the layers, that the first trial keeps in float
FOLDING = Named("fold_norm")
ROUNDING = Named("round_weights", (("method", "gptq"),))
CORRECTING = Named("correct_bias")


def propose_mixed(trials: Sequence[Trial], most: int) -> Recipe | None:
    """The next to try for an INT8 model that missed the budget; at most ``most`` with layers in float."""
    tried = {trial.recipe: trial for trial in trials}
    for trial in trials:
        recipe = parse_recipe(trial.recipe)
        plain = str(recipe.numerics) in ("int8", "int8_dynamic") and ROUNDING not in recipe.steps
        if plain and worth_mending(trial) and float_fits(recipe, trials):
            better = rounded(recipe)
            if most and better is not None and str(better) not in tried:
                return better
            if better is not None and most and tried[str(better)].kept:
                continue
            found = bisected(recipe, trial, trials, most)
            if found is not None:
                return found
    return None


def worth_mending(trial: Trial) -> bool:
    """It missed the accuracy budget, tells its layers, and is not slower than FP32 where it runs."""
    measured = trial.measurement
    if trial.kept or measured is None or len(most_disturbing(measured.executed)) < 2:
        return False
    if measured.verification.failure:
        return True
    missed = measured.quality is not None and measured.quality.verdict in ("over", "undecided")
    same = measured.speedup_same_runtime
    return missed and (same is None or same.verdict != "slower")


def rounded(recipe: Recipe) -> Recipe | None:
    """With its weights rounded by calibration data, where nothing else has settled them."""
    names = {step.name for step in recipe.steps}
    own = "quantizer" in dict(recipe.runtime.options) or str(recipe.numerics) != "int8"
    if own or names & {"round_weights", "quantize_aware"}:
        return None
    more = [step for step in (FOLDING, ROUNDING, CORRECTING) if step.name not in names]
    return dataclasses.replace(recipe, steps=(*recipe.steps, *more))


def float_fits(recipe: Recipe, trials: Sequence[Trial]) -> bool:
    """Whether the same model in FP32 fits, as far as it was tried."""
    twin = str(dataclasses.replace(recipe, numerics=Numerics("fp32")))
    return all(trial.kept for trial in trials if trial.recipe == twin)


def bisected(recipe: Recipe, start: Trial, trials: Sequence[Trial], most: int) -> Recipe | None:
    """Between the fewest layers in float known to fit and the most known not to."""
    assert start.measurement is not None
    order = most_disturbing(start.measurement.executed)
    tried = {
        count: trial for trial in trials if (count := count_of(recipe, parse_recipe(trial.recipe), order))
    }
    fits = min((count for count, trial in tried.items() if trial.kept), default=len(order))
    misses = max((count for count, trial in tried.items() if not trial.kept and count < fits), default=0)
    if len(tried) >= most or fits - misses <= 1:
        return None
    first = max(1, round(FIRST * len(order)))
    count = (misses + fits) // 2 if fits < len(order) else min(max(first, 2 * misses), len(order) - 1)
    return mixed(recipe, order[:count]) if count not in tried else None


def mixed(recipe: Recipe, kept: Sequence[str]) -> Recipe:
    """``recipe`` with these modules in FP32."""
    rules = tuple((module, "fp32") for module in kept)
    return dataclasses.replace(recipe, numerics=Numerics(recipe.numerics.default, rules))


def count_of(recipe: Recipe, other: Recipe, order: Sequence[str]) -> int:
    """How many modules ``other`` keeps in float, if it is ``recipe`` but for that; else 0."""
    rules = tuple(module for module, _ in other.numerics.rules)
    same = rules and other == mixed(recipe, rules) and rules == tuple(order[: len(rules)])
    return len(rules) if same else 0


def most_disturbing(executed: Mapping[str, Any]) -> list[str]:
    """Modules with INT8 layers, those first whose rounding disturbs most for what they compute."""
    noise: dict[str, float] = {}
    macs: dict[str, float] = {}
    for layer in executed.get("layers", ()):
        if layer["int8"] and layer["sqnr_db"] is not None and layer["module"]:
            own = 10 ** (-layer["sqnr_db"] / 10)
            noise[layer["module"]] = max(noise.get(layer["module"], 0.0), own)
            macs[layer["module"]] = macs.get(layer["module"], 0.0) + layer["macs"]
    return sorted(noise, key=lambda module: -noise[module] / max(macs[module], 1e-4))
