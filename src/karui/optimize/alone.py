"""One technique alone: what it makes of the task's model, with the score before and after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from karui.budget import Budget
from karui.data import example_of, items, read_split
from karui.errors import Unsupported, UsageError
from karui.graph.call import arguments, run_all, tensors_of
from karui.graph.inspect import macs, modes_of, with_modes
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


def prune(task: Task, step: Technique, *, consume: bool = False) -> Pruned:
    """The task's model after ``step``; see ``karui.prune``."""
    modes = modes_of(task.model) if isinstance(task.model, nn.Module) else {"": False}
    origin, given, job = prepared(task, consume=consume)
    if origin.model is None:
        raise UsageError("an ONNX file cannot be pruned", fix="give the torch module that it was made from")
    model, text = origin.model, str(Named(type(step).__module__.rpartition(".")[2], options_of(step)))
    blank, before = manifest_of(model, {}, text, {}), cost(model, given)
    done = in_parts(model, step, given) if consume else at_once(model, step, given)
    if not done.parts:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(done.stays.items())[:3])
        raise Unsupported(f"{text} found nothing to remove from this model", why=why)
    facts = account(done, before, cost(done.model, given)) | {"score": scored(job, done.model)}
    facts |= {"notes": list((*origin.notes, *(job.splits.notes if job else ())))}
    return Pruned(with_modes(done.model, modes), replace(blank, parts=done.parts, facts=facts))


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
        found |= {key: done.facts[""][key] for key in ("refitted", "damage")}
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
