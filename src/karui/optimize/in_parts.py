"""Pruning a model in place, one part after the other, in little more memory than the model itself.

A part is a module that is called once a pass with tensors alone: a block of a transformer, a stage of a
convolutional network. What lies between a part's inputs and its outputs can go; these stay. A part is cut
as a model of its own; then the whole is run with the part cut and with the part whole but zero where it
was cut, and only if both agree the cut one stays and the old is let go.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from karui.artifact import Signature
from karui.errors import KaruiError, Unsupported, UsageError, foreign
from karui.graph.call import signature_of, tensors_of
from karui.graph.capture import Flat
from karui.graph.cut import CHECKED_ROWS, TOLERANCE, answers, relative
from karui.graph.cut.in_module import replace, stored
from karui.graph.inspect import private_copy, size_bytes
from karui.graph.pruned import Part, widened
from karui.techniques import Applied, Given, Technique

if TYPE_CHECKING:
    from karui.data import Arrays

SHARE = 1 / 16  # of the model's bytes that a part has at most where it can be divided; a few copies are held
BATCH = 32


@dataclass(frozen=True)
class Done:
    """parts: what was cut, by path. facts: the technique's of each. stays: path of an axis or part -> why."""

    model: nn.Module
    parts: dict[str, Part] = field(default_factory=dict)
    facts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)


def in_parts(model: nn.Module, step: Technique, given: Given) -> Done:
    """Prune ``model``, which is changed in place; ``given`` is as for the whole model."""
    done, limit = Done(model), SHARE * size_bytes(model)
    todo = list(parts_below(model, limit, ""))
    if not todo:
        done.stays["the model"] = "it has no parts that could be cut by themselves; leave consume out"
    while todo:
        path = todo.pop(0)
        try:
            prune_part(done, path, step, given)
        except KaruiError as error:
            done.stays[path] = error.line
            todo[:0] = parts_below(model.get_submodule(path), limit, path)
        gc.collect()  # graphs and their nodes refer to each other, and hold the copies of the part
    return done


def prune_part(done: Done, path: str, step: Technique, given: Given) -> None:
    inputs = called(done.model, path, given)
    applied = step.apply(private_copy(done.model.get_submodule(path)), inputs)
    done.stays.update({f"{path}.{name}": f"{why} (of {path})" for name, why in applied.skipped.items()})
    if applied.touched:
        part = part_of(applied, inputs.signature)
        commit(done.model, path, part, applied, given)
        done.parts[path], done.facts[path] = part, applied.facts


def part_of(applied: Applied, signature: Signature) -> Part:
    """Raises UsageError for a technique that removes nothing for good."""
    if "positions" not in applied.facts:
        raise UsageError("this technique removes nothing for good", fix="use karui.apply")
    facts = applied.facts
    return Part(facts["form"], facts["positions"], signature, bool(facts["inexact"]))


def parts_below(module: nn.Module, limit: float, path: str) -> Iterator[str]:
    """Paths of the largest modules that hold at most ``limit`` bytes or cannot be divided further."""
    for name, child in module.named_children():
        where = f"{path}.{name}" if path else name
        if not any(child.children()):
            continue  # there is no unit inside of one layer
        if is_called(child) and (size_bytes(child) <= limit or holds_layers(child)):
            yield where
        else:
            yield from parts_below(child, limit, where)


def is_called(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def holds_layers(module: nn.Module) -> bool:
    """Whether two layers with weight matrices lie directly in it: units may lie between them."""
    layers = [
        child
        for child in module.children()
        if not any(child.children()) and not isinstance(child, nn.Embedding)
    ]
    return sum(any(p.ndim > 1 for p in layer.parameters()) for layer in layers) > 1


def called(model: nn.Module, path: str, given: Given) -> Given:
    """How the part at ``path`` is called, and its inputs while the model works on the calibration data.

    Raises Unsupported for a part that shares weights, or is not called once with tensors alone.
    """
    if shared := shared_with(model, path):
        raise Unsupported(f"it shares weights with {shared}")
    arrays = inputs_of(model, path, given, given.calibrate)
    example = {name: array[:BATCH] for name, array in arrays.items()}
    part = model.get_submodule(path)
    signature, rows = signature_of(part, tensors_of(example), 1)
    return Given(rows, arrays, signature, known=given.known)


def shared_with(model: nn.Module, path: str) -> str:
    """A tensor of the part under a name outside of it; empty when there is none."""
    found = stored(model)
    inside = {id(tensor) for name, tensor in found if name.startswith(f"{path}.")}
    outside = (name for name, tensor in found if not name.startswith(f"{path}.") and id(tensor) in inside)
    return next(outside, "")


@torch.no_grad()
def inputs_of(model: nn.Module, path: str, given: Given, arrays: Arrays) -> Arrays:
    """What goes into a part, by argument, while ``model`` works on ``arrays``."""
    import numpy as np

    part, flat = model.get_submodule(path), Flat(model, given.signature)
    parts: list[dict[str, Tensor]] = []
    hook = part.register_forward_pre_hook(
        lambda module, args, kwargs: parts.append(by_name(module, args, kwargs)), with_kwargs=True
    )
    rows = len(next(iter(arrays.values())))
    try:
        for start in range(0, rows, BATCH):
            count = len(parts)
            flat(*tensors_of({name: array[start : start + BATCH] for name, array in arrays.items()}).values())
            if len(parts) != count + 1:
                raise Unsupported(f"it is called {len(parts) - count} times in one pass")
    finally:
        hook.remove()
    with foreign(Unsupported, "its inputs do not fit together"):
        return {name: np.concatenate([one[name].numpy() for one in parts]) for name in parts[0]}


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arguments of a call; those given as their default are left out."""
    signature = inspect.signature(module.forward)
    found = {
        name: value
        for name, value in signature.bind(*args, **kwargs).arguments.items()
        if value is not signature.parameters[name].default
    }
    if other := [name for name, value in found.items() if not isinstance(value, Tensor)]:
        raise Unsupported(f"it is called with {other[0]}, which is no tensor")
    return found


def commit(model: nn.Module, path: str, part: Part, applied: Applied, given: Given) -> None:
    """Put the cut part in its place; raises Unsupported, with the old one back, if that is not exact."""
    old = model.get_submodule(path)
    try:
        with foreign(Unsupported, "the model does not run with this part cut"):
            replace(model, path, widened(old, applied.model, part))
            wanted = answers_of(model, given)
            replace(model, path, applied.model)
            check_close(answers_of(model, given), wanted)
    except BaseException:
        replace(model, path, old)
        raise


def answers_of(model: nn.Module, given: Given) -> list[Tensor]:
    """To a few example samples, for two batch sizes."""
    inputs = [{name: array[:rows] for name, array in given.inputs.items()} for rows in CHECKED_ROWS]
    checks = [tuple(tensors_of(arrays).values()) for arrays in inputs]
    return [answer for check in checks for answer in answers(model, given.signature, check)]


def check_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    worst = max(relative(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
    if not worst <= TOLERANCE:
        raise Unsupported(
            f"the model answers differently with this part cut: {worst:.1e} of the largest answer"
        )
