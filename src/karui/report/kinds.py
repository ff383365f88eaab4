"""The textbook's trade-off table for one's own model: the best row of each kind of technique.

A recipe belongs to a kind by the names of its steps, its precision and its runtime; two kinds in one
recipe are a kind of their own, so that no row is credited with what another technique did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from karui.recipe import Recipe
from karui.report import fields
from karui.report.fields import Json
from karui.report.rows import tone
from karui.report.said import cost, objective, parsed, steps_of
from karui.report.view import Run, Trial, read

SCHEMA = "karui.table/1"
ORIGINAL = "original"
KINDS = {
    ORIGINAL: "FP32 original",
    "half": "FP16 or BF16",
    "int8": "INT8, calibrated (PTQ)",
    "int8_dynamic": "INT8, dynamic",
    "int8_weights": "INT8 weights only",
    "int4_weights": "INT4 weights only",
    "quantize_aware": "INT8, trained (QAT)",
    "structured": "Structured pruning",
    "unstructured": "Unstructured pruning",
    "distillation": "Distillation",
    "compile": "torch.compile",
    "runtime": "Another runtime, FP32",
    "several": "Several of these together",
    "other": "Other steps",
}
WHEN_TRIED = ("int8_weights", "int4_weights", "several", "other")  # rows only where the run has such a recipe
STEPS = {
    "quantize_aware": "quantize_aware",
    "prune_channels": "structured",
    "prune_weights": "unstructured",
    "distill": "distillation",
}
HELP = ("finetune", "iterative", "fold_norm", "equalize", "smooth", "correct_bias", "round_weights")
PRECISIONS = {"bf16": "half", "fp16": "half"}
TRAINS = ("finetune", "distill", "quantize_aware")
QUALITY = ("value", "drop", "low", "high", "verdict", "n")
NO_DATA = ("fold_norm", "equalize")


@dataclass(frozen=True)
class KindRow:
    """``trial`` is None for a dash, and ``reason`` says why."""

    kind: str
    trial: Trial | None
    tried: int
    needs: str = ""
    shared: bool = False
    reason: str = ""

    @property
    def title(self) -> str:
        return KINDS[self.kind]


def kind_rows(run: Run) -> list[KindRow]:
    """One row for each kind, the textbook's always, the further ones where the run has them."""
    kinds = {trial.id: ORIGINAL if trial is run.baseline else kind_of(trial.recipe) for trial in run.trials}
    found = []
    for kind in KINDS:
        trials = [trial for trial in run.trials if kinds[trial.id] == kind]
        refused = [item for item in run.refused if kind_of(fields.text(item, "recipe")) == kind]
        if trials or refused or kind not in WHEN_TRIED:
            found.append(kind_row(run, kind, trials, refused))
    return found


def kind_of(text: str) -> str:
    """A key of KINDS; ``other`` for what this version does not know."""
    recipe = parsed(text)
    if recipe is None:
        return "other"
    names = steps_of(recipe)
    found = [STEPS[name] for name in dict.fromkeys(names) if name in STEPS]
    precision = recipe.numerics.default
    numeric = PRECISIONS.get(precision, precision if precision != "fp32" else "")
    if numeric and not (numeric == "int8" and "quantize_aware" in found):
        found.append(numeric)
    if any(name not in STEPS and name not in HELP for name in names):
        return "other"
    if len(found) > 1:
        return "several"
    return found[0] if found else plain_kind(recipe)


def plain_kind(recipe: Recipe) -> str:
    """FP32 with no step of a kind: what is left is the runtime."""
    if recipe.steps:
        return "other"
    return "compile" if recipe.runtime.name == "torch_compile" else "runtime"


def kind_row(run: Run, kind: str, trials: Sequence[Trial], refused: Sequence[Json]) -> KindRow:
    best = best_of(run, trials)
    if best is None:
        return KindRow(kind, None, len(trials), reason=why_none(trials, refused))
    steps = best.recipe.rpartition(" + ")[0]
    earlier = run.trials[: next(i for i, trial in enumerate(run.trials) if trial is best)]
    shared = bool(steps) and any(trial.recipe.rpartition(" + ")[0] == steps for trial in earlier)
    return KindRow(kind, best, len(trials), needs(best.recipe), shared)


def best_of(run: Run, trials: Sequence[Trial]) -> Trial | None:
    """What was chosen, else what was kept, else what was measured; of these the least by the objective."""

    def order(trial: Trial) -> tuple[bool, bool, bool, float]:
        value = cost(run, trial)
        return trial is not run.best, trial.status != "kept", value is None, value or 0.0

    measured = [trial for trial in trials if trial.status in ("kept", "rejected")]
    return min(measured, key=order, default=None)


def why_none(trials: Sequence[Trial], refused: Sequence[Json]) -> str:
    """Failed, refused, or never asked for."""
    if failed := [trial for trial in trials if trial.status == "failed"]:
        return f"{failed[0].recipe} failed: {fields.clip(failed[0].reason, 120)}"
    if refused:
        name, reason = (fields.text(refused[0], key) for key in ("recipe", "reason"))
        return f"{name}: {fields.clip(reason, 120)}"
    return "no recipe of this kind was tried"


def needs(text: str) -> str:
    """The data that making it takes."""
    recipe = parsed(text)
    if recipe is None:
        return ""
    names = steps_of(recipe)
    if any(name in TRAINS for name in names):
        return "training"
    looks = [name for name in names if name not in NO_DATA]
    return "calibration data" if looks or recipe.numerics.default == "int8" else "no data"


# --- as JSON


def table(result: Json) -> dict[str, Any]:
    """Facts for each kind (schema ``karui.table/1``)."""
    run = read(result)
    return {
        "schema": SCHEMA,
        "headline": run.headline,
        "objective": objective(run),
        "rows": [row_json(run, row) for row in kind_rows(run)],
    }


def row_json(run: Run, row: KindRow) -> dict[str, Any]:
    trial = row.trial
    data: Json = trial.data if trial else {}
    keys = ("speedup", "size_bytes", "build_s")
    return {
        "kind": row.kind,
        "title": row.title,
        "recipe": trial.recipe if trial else None,
        "id": trial.id if trial else None,
        "verdict": tone(run, trial) if trial else None,
        "tried": row.tried,
        "needs": row.needs or None,
        "steps_shared": row.shared,
        "reason": row.reason or None,
        **{key: data.get(key) for key in keys},
        "quality": {key: fields.at(data, "quality", key) for key in QUALITY},
        "size_ratio": size_ratio(run, trial),
    }


def size_ratio(run: Run, trial: Trial | None) -> float | None:
    base = run.baseline.size_bytes if run.baseline else None
    return trial.size_bytes / base if trial and trial.size_bytes and base else None
