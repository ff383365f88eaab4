"""Which recipes can be tried at all; the others are refused with a reason, at no cost."""

from __future__ import annotations

import dataclasses
from typing import Any

from karui import runtimes, techniques
from karui.errors import MissingRuntime, Unsupported, foreign
from karui.optimize.job import Job
from karui.optimize.origin import facts_of
from karui.recipe import Recipe, parse_recipe
from karui.runtimes import Ask


def ask_of(job: Job) -> Ask:
    facts = facts_of(job.origin, job.signature, job.example)
    return Ask(
        numerics=parse_recipe(job.origin.baseline).numerics,
        form=job.origin.form,
        layers=facts.layers,
        flags=tuple(sorted(job.machine.flags())),
        calibrated=len(job.splits.calibrate) > 0,
        batch=job.target.batch,
        threads=job.target.threads,
    )


def refusal_of(recipe: Recipe, ask: Ask) -> str | None:
    if recipe.steps and ask.form != "torch":
        return "steps change a torch model, and the model was given as ONNX"
    try:
        with foreign(Unsupported, f"{recipe.runtime.name} cannot be used"):
            for step in recipe.steps:
                techniques.load(step)
            return runtimes.usable(recipe.runtime).refuses(dataclasses.replace(ask, numerics=recipe.numerics))
    except MissingRuntime as error:
        return f"not installed: {error.fix}"
    except Unsupported as error:
        return error.line


def refusal(recipe: Recipe, reason: str) -> dict[str, Any]:
    return {
        "recipe": str(recipe),
        "runtime": recipe.runtime.name,
        "precision": recipe.numerics.default,
        "reason": reason,
    }
