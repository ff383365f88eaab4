"""The Python surface: one call for the main job, and the parts of it by themselves."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui import runtimes, techniques
from karui.artifact import Artifact, Signature, open_artifact
from karui.budget import Budget, parse_drop
from karui.data import as_arrays, items, read_split
from karui.errors import UsageError
from karui.graph.call import signature_of
from karui.graph.inspect import modes_of, private_copy, with_modes
from karui.graph.inspect import size_bytes as model_bytes
from karui.graph.inspect import sparsity as model_sparsity
from karui.graph.pruned import Pruned
from karui.graph.ranges.table import Table
from karui.optimize import Settings, alone, quantized, run
from karui.optimize.result import Result
from karui.recipe import Named, Recipe, parse_named, parse_recipe
from karui.structure import flatten, unflatten
from karui.target import Target
from karui.task import Task

if TYPE_CHECKING:
    from torch import nn

    from karui.data import Arrays
    from karui.graph.training.loop import Watch

BENCH_ROWS = 64


def optimize(  # noqa: PLR0913 - one call for the main job
    task: Task,
    target: str | Target = "cpu",
    *,
    max_drop: float | str | None = None,
    budget: Budget | None = None,
    out: Path | str | None = None,
    on: str = "",
    settings: Settings | None = None,
) -> Result:
    """Try the target's recipes on ``task`` and choose the fastest inside the accuracy budget.

    max_drop: points (``0.5``), or relative (``"1%"``); 1 point, or 1 % for scores that are no share,
        when not given. ``budget`` sets it together with further limits.
    out: the run folder; an interrupted run in it goes on where it stopped. A new folder under
        ``karui-runs`` when not given.
    on: the machine where artifacts are run and timed, such as ``ssh://board``; this one when not given.

    The user's model is never changed. Raises KaruiError for anything that cannot be measured.
    """
    if max_drop is not None:
        drop, unit = parse_drop(str(max_drop))
        budget = dataclasses.replace(budget or Budget(), max_drop=drop, unit=unit)
    aim = Target(target) if isinstance(target, str) else target
    return run(
        task,
        dataclasses.replace(aim, on=on) if on else aim,
        budget or Budget(),
        Path(out) if out else new_folder(Path("karui-runs")),
        settings or Settings(command="karui.optimize(...)"),
    )


def bench(
    model: Any,
    inputs: Any,
    target: str | Target = "cpu",
    *,
    out: Path | str | None = None,
    on: str = "",
    settings: Settings | None = None,
) -> Result:
    """Measure ``model`` on every runtime and precision with no data but example ``inputs``.

    Quality is the agreement with the original on random inputs of the same form: a check that
    nothing broke, not an accuracy. INT8 ranges come from those inputs as well.
    """
    task, budget = bench_task(model, inputs), Budget(max_drop=100.0)
    return optimize(task, target, budget=budget, out=out, on=on, settings=settings)


def bench_task(model: Any, inputs: Any) -> Task:
    """The task of ``bench``: random inputs, and agreement with the original."""
    return Task(model, inputs, select=random_like(inputs), score="agreement", name="bench")


def random_like(inputs: Any, rows: int = 4 * BENCH_ROWS) -> list[Any]:
    """One batch of ``rows`` random samples: normal floats, and integers drawn from those given."""
    import numpy as np

    rng = np.random.default_rng(0)

    def draw(value: Any) -> Any:
        array = (
            value.detach().cpu().numpy() if callable(getattr(value, "detach", None)) else np.asarray(value)
        )
        shape = (rows, *array.shape[1:])
        if array.dtype.kind == "f":
            return rng.standard_normal(shape).astype(array.dtype)
        return rng.choice(array.ravel(), shape)

    leaves, tree = flatten(inputs)
    return [(unflatten([draw(leaf) for leaf in leaves], tree),)]


def apply(
    what: str | Recipe | Named | techniques.Technique,
    model: nn.Module,
    *,
    inputs: Any,
    calibrate: Any = None,
    train: Any = None,
    teacher: nn.Module | None = None,
) -> techniques.Applied:
    """Apply a technique, or all steps of a recipe, to a copy of ``model``.

    inputs: example inputs with a leading batch axis. calibrate, train: data, as in ``Task``.
    teacher: the model that steps which train learn from; ``model`` as it is now when not given.
    Returns ``Applied``: ``.model``, ``.touched``, ``.skipped`` (name -> reason), ``.facts``, ``.ranges``.
    """
    copy = private_copy(model)
    signature, example = signature_of(copy, inputs, 1)
    names = [port.name for port in signature.inputs]
    data = (
        read_split(list(items(calibrate, "calibration")), names, "calibration").inputs
        if calibrate is not None
        else example
    )
    taught = private_copy(model if teacher is None else teacher)
    given = techniques.Given(example, data, signature, train, ranges=Table(), teacher=taught)
    touched: list[str] = []
    skipped: dict[str, str] = {}
    facts: dict[str, Any] = {}
    for step in steps_of(what):
        applied = step.apply(copy, given)
        copy, ranges = applied.model, (given.ranges or Table()).with_(applied.ranges or {})
        given = dataclasses.replace(given, ranges=ranges)
        touched += applied.touched
        skipped |= applied.skipped
        facts |= applied.facts
    made = with_modes(copy, modes_of(model))
    return techniques.Applied(made, tuple(touched), skipped, facts, given.ranges)


def steps_of(what: Any) -> list[techniques.Technique]:
    if isinstance(what, techniques.Technique):
        return [what]
    if isinstance(what, str):
        what = parse_recipe(what) if "@" in what else [parse_named(part) for part in what.split(" + ")]
    steps: Sequence[Named] = (
        what.steps if isinstance(what, Recipe) else what if isinstance(what, list) else [what]
    )
    if not steps:
        raise UsageError("the recipe has no step to apply", fix="numerics are the business of karui.optimize")
    return [techniques.load(step) for step in steps]


def prune(
    task: Task,
    technique: str | Named | techniques.Technique = "prune_channels",
    *,
    consume: bool = False,
    checkpoints: Path | str | None = None,
) -> Pruned:
    """One pruning technique alone, on the task's model with its calibration data.

    The score before and after is taken on ``select`` where that is given, else ``facts["score"]`` is None.
    consume: the task's own model is pruned in place, part by part, in little more memory than it takes
        itself; it is of no further use but as the result's ``model``. Otherwise it stays as it was.
    checkpoints: a folder for what is measured of each layer: a call that was killed goes on when it is made
        again, and another goal for the same model begins there.

    ``.save(folder)`` keeps the result, ``karui.load_pruned(folder, net)`` opens it again. Raises KaruiError
    when there is nothing that can go.
    """
    steps = steps_of(technique)
    if len(steps) > 1:
        raise UsageError("prune takes one technique", fix="karui.apply takes several steps")
    folder = Path(checkpoints) if checkpoints else None
    if steps[0].ZEROES and not consume:
        return alone.train(task, steps, folder)
    return alone.prune(task, steps[0], folder, consume=consume)


def finetune(
    task: Task,
    technique: str | Named | techniques.Technique = "finetune",
    *,
    after: str = "",
    checkpoints: Path | str | None = None,
) -> Pruned:
    """Train the task's model, or what the steps ``after`` leave of it, on ``train`` or the calibration data.

    The task's ``teacher``, or its model as it was, teaches; labels help; or the task's own ``finetune`` does
    it all. after: such as ``prune_channels:macs=0.5``. checkpoints: a folder: a call that was killed goes on
    when it is made again. Score, ``.save`` and ``karui.load_pruned`` are as with ``karui.prune``; the task's
    model stays as it was. Raises KaruiError when there is nothing to learn from.
    """
    before = [parse_named(part) for part in after.split(" + ")] if after else []
    return trained(task, [*before, technique], checkpoints)


def distill(
    task: Task,
    technique: str | Named | techniques.Technique = "distill",
    *,
    checkpoints: Path | str | None = None,
) -> Pruned:
    """Teach the task's ``student``, or a narrower copy of its model, what the model answers.

    The rest is as with ``karui.finetune``; ``karui.load_pruned`` opens what was saved with the model, or
    with a student of the task.
    """
    return trained(task, [technique], checkpoints)


def trained(
    task: Task,
    steps: Sequence[str | Named | techniques.Technique],
    checkpoints: Path | str | None = None,
    watch: Watch | None = None,
) -> Pruned:
    """The task's model after ``steps``; ``watch`` hears how a training goes."""
    made = [technique for step in steps for technique in steps_of(step)]
    return alone.train(task, made, Path(checkpoints) if checkpoints else None, watch)


def quantize(
    task: Task,
    recipes: str | Sequence[str],
    out: Path | str | None = None,
    shards: Path | str | None = None,
) -> list[dict[str, Any]]:
    """INT8 artifacts and nothing else: built, verified and scored in fresh processes, but not timed.

    recipes: such as ``int8@onnxruntime`` or ``round_weights + int8[head=fp32]@openvino``; one table of
        ranges serves them all. The score is taken on ``select``; without it, the agreement with the original
        on the calibration data.
    out: a new folder; one under ``karui-quantized`` when not given.
    shards: a folder of ``.safetensors`` files, or one of these, for a model that is built blank (in a block
        ``with karui.blank():``): its weights are read from there one after the other, and the model is never
        in memory whole. For ``int8_weights`` and ``int4_weights`` without steps.

    One dict a recipe: ``artifact`` (its folder; ``karui.load`` opens it), ``size_bytes``, ``executed``,
    ``verification``, ``score``; or ``failure``. Raises KaruiError when none came to anything.
    """
    texts = [recipes] if isinstance(recipes, str) else list(recipes)
    folder = Path(out) if out else new_folder(Path("karui-quantized"))
    return quantized.quantize(
        task, [parse_recipe(text) for text in texts], folder, Path(shards) if shards else None
    )


def load(artifact: Artifact | Path | str) -> Callable[..., Any]:
    """Open an artifact (a folder, or the zip that ``karui export`` wrote) and call it like the model.

    Takes torch tensors or numpy arrays, and gives back the same kind, in the model's own structure.
    """
    path = artifact.folder if isinstance(artifact, Artifact) else Path(artifact)
    scratch = Path(tempfile.mkdtemp(prefix="karui-"))
    with removed_on_failure(scratch):
        call = opened(open_artifact(path, scratch))
    weakref.finalize(call, shutil.rmtree, scratch, ignore_errors=True)
    return call


@contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder)
        raise


def opened(artifact: Artifact) -> Callable[..., Any]:
    """The artifact as a function with the signature of the original model."""
    signature, names = artifact.signature, [port.name for port in artifact.signature.inputs]
    runtime = runtimes.load(parse_recipe(artifact.recipe).runtime)
    predict = runtime.load(artifact.folder, signature, artifact.threads)

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Mapping):
            kwargs, args = {**args[0], **kwargs}, ()
        given = {**dict(zip(names, args)), **kwargs} if kwargs else args
        arrays = as_arrays(given, names)
        check_fit(arrays, signature)
        outputs = predict(arrays)
        first = flatten(given)[0][0]
        return unflatten([like(first, output) for output in outputs], signature.tree)

    return call


def check_fit(arrays: Arrays, signature: Signature) -> None:
    """Runtimes say this in words of their own, or give garbage."""
    for port in signature.inputs:
        array = arrays[port.name]
        rows = len(array) if signature.dynamic_batch else signature.batch
        given, wanted = f"{array.dtype} {array.shape}", f"{port.dtype} {(rows, *port.shape[1:])}"
        if given != wanted:
            why = f"{given} was given, the model takes {wanted}"
            raise UsageError(f"the input {port.name} does not fit the model", why=why)


def like(example: Any, output: Any) -> Any:
    """``output`` as a torch tensor when ``example`` is one."""
    if type(example).__module__.partition(".")[0] != "torch":
        return output
    import torch

    return torch.from_numpy(output)


def sparsity(model: nn.Module) -> float:
    """Share of exact zeros among all parameters, 0..1."""
    return model_sparsity(model)


def size_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared storage once."""
    return model_bytes(model)


def new_folder(parent: Path) -> Path:
    """A fresh run folder named by the time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = parent / stamp
    return folder if not folder.exists() else parent / f"{stamp}-{time.time_ns() % 1000:03d}"
