"""One technique alone, or a few that end in a training: the model after them, with both scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from karui.budget import Budget
from karui.data import example_of, items, read_split
from karui.errors import Unsupported, UsageError
from karui.graph.call import arguments, run_all, tensors_of
from karui.graph.cut.in_module import stored
from karui.graph.inspect import macs, modes_of, private_copy, with_modes
from karui.graph.pruned import Pruned, manifest_of
from karui.optimize.attempt import judged
from karui.optimize.in_parts import Done, in_parts, part_of
from karui.optimize.job import Job
from karui.optimize.origin import Origin, describe, from_model
from karui.optimize.prepare import check_inputs, prepare, sources, teacher_of
from karui.optimize.workshop import given_of
from karui.options import options_of
from karui.recipe import Named
from karui.target import Target
from karui.task import Task
from karui.techniques import Given, Technique

if TYPE_CHECKING:
    from karui.graph.training.loop import Watch


def prune(task: Task, step: Technique, known: Path | None = None, *, consume: bool = False) -> Pruned:
    """The task's model after ``step``; known: a folder of measurements. See ``karui.prune``."""
    modes = modes_of(task.model) if isinstance(task.model, nn.Module) else {"": False}
    origin, given, job = prepared(task, consume=consume)
    if origin.model is None:
        raise UsageError("an ONNX file cannot be pruned", fix="give the torch module that it was made from")
    given = replace(given, known=known)
    model, text = origin.model, text_of(step)
    blank, before = manifest_of(model, {}, text, {}), cost(model, given)
    done = in_parts(model, step, given) if consume else at_once(model, step, given)
    if not done.parts:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(done.stays.items())[:3])
        raise Unsupported(f"{text} found nothing to remove from this model", why=why)
    facts = account(done, before, cost(done.model, given)) | {"score": scored(job, done.model)}
    facts |= {"notes": notes(origin, job)}
    return Pruned(with_modes(done.model, modes), replace(blank, parts=done.parts, facts=facts))


def train(
    task: Task, steps: Sequence[Technique], folder: Path | None = None, watch: Watch | None = None
) -> Pruned:
    """The task's model after ``steps``, with checkpoints in ``folder``; see ``karui.finetune``."""
    modes = modes_of(task.model) if isinstance(task.model, nn.Module) else {"": False}
    origin, given, job = prepared(task, consume=False)
    if origin.model is None:
        raise UsageError("an ONNX file cannot be trained", fix="give the torch module that it was made from")
    given = replace(given, folder=folder, watch=watch)
    done, told = in_turn(private_copy(origin.model), steps, given)
    whole = done.model if "student" in told else origin.model
    made = Pruned(done.model, manifest_of(whole, done.parts, " + ".join(map(text_of, steps)), {}))
    check_form(made, whole)
    before, after = cost(origin.model, given), cost(done.model, given)
    facts = {key: value for key, value in told.items() if key != "positions"}
    facts |= {"macs": [before[0], after[0]], "parameters": [before[1], after[1]], "stays": done.stays}
    facts |= {"score": scored(job, done.model), "notes": notes(origin, job)}
    return Pruned(with_modes(done.model, modes), replace(made.manifest, facts=facts))


def in_turn(model: nn.Module, steps: Sequence[Technique], given: Given) -> tuple[Done, dict[str, Any]]:
    """``model``, which is consumed, after all steps, and the facts of each."""
    done, told = Done(model), dict[str, Any]()
    for step in steps:
        applied = step.apply(done.model, given)
        if not applied.touched:
            why = "; ".join(f"{name}: {reason}" for name, reason in list(applied.skipped.items())[:3])
            raise Unsupported(f"{text_of(step)} found nothing to do in this model", why=why)
        if "positions" in applied.facts and done.parts:
            raise UsageError("two steps would cut the model", fix="cut it in one step")
        parts = {"": part_of(applied, given.signature)} if "positions" in applied.facts else done.parts
        done = Done(applied.model, parts, {}, {**done.stays, **applied.skipped})
        told |= applied.facts
    return done, told


def check_form(made: Pruned, whole: nn.Module) -> None:
    """What is kept fits the user's class again: its own tensors, cut where the manifest says."""
    if any(part.form == "graph" for part in made.manifest.parts.values()):
        return
    wanted = {name: made.manifest.sliced(name, one).shape for name, one in stored(whole)}
    if {name: one.shape for name, one in stored(made.model)} != wanted:
        raise UsageError(
            "a step changed the form of the model, which then fits its class no longer",
            fix="karui.apply gives it as it is",
        )


def text_of(step: Technique) -> str:
    return str(Named(type(step).__module__.rpartition(".")[2], options_of(step)))


def notes(origin: Origin, job: Job | None) -> list[str]:
    return list((*origin.notes, *(job.splits.notes if job else ())))


def prepared(task: Task, *, consume: bool) -> tuple[Origin, Given, Job | None]:
    """Model and data, checked; with validation data also what the original answers to them."""
    if task.select is not None:
        job = prepare(task, Target("cpu"), Budget(), Path(), consume=consume)
        return job.origin, given_of(job), job
    found = {what: list(items(data, what)) for what, data in sources(task).items() if what == "calibration"}
    batches = found.get("calibration", [])
    if task.inputs is None and not batches:
        raise UsageError("the task has neither data nor inputs", fix="give calibrate=... or select=...")
    example = task.inputs if task.inputs is not None else example_of(batches, "calibration")
    origin = from_model(task.model, example, consume=consume)
    signature, arrays = describe(origin, example, 1)
    teacher = teacher_of(task, origin, consume=consume)
    given = Given(
        arrays,
        arrays,
        signature,
        task.train,
        teacher=teacher,
        finetune=task.finetune,
        student=task.student,
    )
    if not batches:
        return origin, given, None
    split = read_split(batches, [port.name for port in signature.inputs], "calibration")
    check_inputs(split, signature, "calibration")
    return origin, replace(given, calibrate=split.inputs), None


def at_once(model: nn.Module, step: Technique, given: Given) -> Done:
    """The whole of ``model``, a private copy, which is consumed."""
    applied = step.apply(model, given)
    done = Done(applied.model, stays=dict(applied.skipped))
    if applied.touched:
        done.parts[""], done.facts[""] = part_of(applied, given.signature), applied.facts
    return done


def cost(model: nn.Module, given: Given) -> tuple[int, int]:
    """Multiply-accumulates of one sample, and parameters."""
    one = tensors_of({name: array[:1] for name, array in given.inputs.items()})
    args, kwargs = arguments(given.signature.style, one)
    return macs(model, args, kwargs), sum(p.numel() for p in model.parameters())


def account(done: Done, before: tuple[int, int], after: tuple[int, int]) -> dict[str, Any]:
    """What went, what stayed and why, as plain numbers and words."""
    kept = {
        f"{where}.{name}" if where else name: text
        for where, facts in done.facts.items()
        for name, text in facts["kept"].items()
    }
    found: dict[str, Any] = {
        "form": "graph" if any(part.form == "graph" for part in done.parts.values()) else "module",
        "cut_error": max(facts["cut_error"] for facts in done.facts.values()),
        "macs": [before[0], after[0]],
        "parameters": [before[1], after[1]],
        "kept": kept,
        "stays": dict(done.stays),
        "inexact": sorted({why for facts in done.facts.values() for why in facts["inexact"]}),
    }
    if "" in done.facts:
        found |= {key: done.facts[""][key] for key in ("refitted", "damage", "sibling")}
    return found


def scored(job: Job | None, model: nn.Module) -> dict[str, Any] | None:
    """The task's score on the split ``select``, before and after, with the 95 % interval of the drop."""
    if job is None:
        return None
    outputs = run_all(model, job.signature.style, job.splits.select.inputs)
    outcomes = job.outcomes(job.reference["select"], "select"), job.outcomes(outputs, "select")
    found = judged(job, outputs, outcomes, "select")
    return {
        "name": job.score.name,
        "points": job.score.share,
        "before": float(outcomes[0].mean()),
        "after": found.value,
        "drop": found.drop,
        "low": found.low,
        "high": found.high,
        "n": found.n,
    }
