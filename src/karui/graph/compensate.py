"""Letting what stays take over from what goes: least squares, layer by layer, on the changed inputs.

Targets are the original model's. Where a layer's result is added to a shortcut, the target is the
original sum minus what the shortcut, already changed, delivers; so drift from earlier layers is made up
for as well. No labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional

from karui.graph.consumers import (
    Consumer,
    bias_of,
    find_consumers,
    in_order,
    inputs_of,
    outputs_of,
    tensor_at,
    values_at,
)
from karui.graph.cut.shapes import Gone, kept, zero_out
from karui.graph.gram import Moments, fit
from karui.graph.program import flat
from karui.graph.units import Units
from karui.graph.units.labels import Labels

SMALLEST_SCALE = 1e-3  # a norm that scales a channel by less than this cannot be inverted


@dataclass(frozen=True)
class Affine:
    """What a batch norm does to each channel in eval mode: x * scale + shift."""

    scale: Tensor
    shift: Tensor


def affine(graph: GraphModule, consumer: Consumer) -> Affine | None:
    if consumer.norm is None:
        return None
    weight, bias, mean, variance = (tensor_at(graph, str(part.target)) for part in norm_parts(consumer))
    eps: Any = consumer.norm.args[7]
    scale = weight / torch.sqrt(variance + float(eps))
    return Affine(scale.detach(), (bias - mean * scale).detach())


def norm_parts(consumer: Consumer) -> Sequence[Any]:
    assert consumer.norm is not None
    return consumer.norm.args[1:5]


def compensate(
    units: Units,
    original: GraphModule,
    gone: Gone,
    data: Sequence[tuple[Tensor, ...]],
) -> list[str]:
    """Refit, in place, every layer of the traced graph that the removal reaches; gives their weights' paths.

    data: at least two batches of flat inputs. original: the graph before anything was zeroed.
    """
    graph = units.trace.graph
    changed = reached(units, gone)
    done = []
    for consumer in in_order(find_consumers(units), graph):
        if consumer.source.name in changed or bool(gone.at(consumer.columns).any()):
            refit(graph, original, consumer, gone, data)
            done.append(consumer.weight)
    zero_out(graph, units, gone)
    return done


def reached(units: Units, gone: Gone) -> set[str]:
    """Names of the nodes whose values the removal changes."""
    found: set[str] = set()
    for node in units.trace.graph.graph.nodes:
        labels = units.of(node)
        stored = node.op == "get_attr" and isinstance(labels, Labels) and kept(labels, gone).changed
        if stored or any(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    return found


def refit(
    graph: GraphModule,
    original: GraphModule,
    consumer: Consumer,
    gone: Gone,
    data: Sequence[tuple[Tensor, ...]],
) -> None:
    """One layer: new weights on the kept columns, and a new bias where it has a place for one."""
    ones = consumer.bias is not None or consumer.norm is not None
    halves = (Moments(ones), Moments(ones))
    for number, inputs in enumerate(data):
        x, y = problem(graph, original, consumer, inputs)
        halves[number % 2].add(inputs_of(consumer, x), outputs_of(consumer, y))
    bias = bias_of(graph, consumer)
    for group in range(consumer.groups):
        refit_group(graph, consumer, gone, group, (halves, bias))
    store_bias(graph, consumer, bias)


def refit_group(
    graph: GraphModule,
    consumer: Consumer,
    gone: Gone,
    group: int,
    found: tuple[tuple[Moments, Moments], Tensor],
) -> None:
    """One group of a layer, in place; its part of the bias too."""
    (halves, bias), weight = found, tensor_at(graph, consumer.weight).data
    outputs, ones = len(weight) // consumer.groups, halves[0].ones
    rows = slice(group * outputs, (group + 1) * outputs)
    columns = ~gone.at(consumer.columns[group]).repeat_interleave(consumer.area(graph))
    start = weight[rows].reshape(outputs, -1).T.double()
    if ones:
        columns = torch.cat([columns, torch.ones(1, dtype=torch.bool)])
        start = torch.cat([start, bias[rows].double().unsqueeze(0)])
    if not bool(columns.any()):
        return
    new = fit(halves, group, start, columns).T.float()
    chosen = (~gone.at(consumer.rows) & invertible(graph, consumer))[rows]
    refitted = weight[rows].reshape(outputs, -1).clone()
    refitted[chosen] = new[chosen, : refitted.shape[1]]
    weight[rows] = refitted.reshape(weight[rows].shape)
    if ones:
        bias[rows] = torch.where(chosen, new[:, -1], bias[rows])


def problem(
    graph: GraphModule, original: GraphModule, consumer: Consumer, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The layer's input in the changed model, and the output that would be right."""
    source = consumer.source.name
    if consumer.meets is None:
        now = values_at(graph, inputs, {source})
        return now[source], values_at(original, inputs, {consumer.node.name})[consumer.node.name]
    total, other = consumer.meets
    now = values_at(graph, inputs, {source, other.name})
    wanted = values_at(original, inputs, {total.name})[total.name] - now[other.name]
    return now[source], before_norm(graph, consumer, wanted)


def before_norm(graph: GraphModule, consumer: Consumer, y: Tensor) -> Tensor:
    """What has to go into the norm for ``y`` to come out."""
    found = affine(graph, consumer)
    if found is None:
        return y
    shape = (1, -1, *[1] * (y.ndim - 2))
    scale = torch.where(found.scale.abs() < SMALLEST_SCALE, 1.0, found.scale)
    return (y - found.shift.reshape(shape)) / scale.reshape(shape)


def invertible(graph: GraphModule, consumer: Consumer) -> Tensor:
    found = affine(graph, consumer)
    if found is None or consumer.meets is None:
        return torch.ones(len(tensor_at(graph, consumer.weight)), dtype=torch.bool)
    return found.scale.abs() >= SMALLEST_SCALE


def store_bias(graph: GraphModule, consumer: Consumer, bias: Tensor) -> None:
    if consumer.bias is not None:
        tensor_at(graph, consumer.bias).data.copy_(bias)
    elif consumer.norm is not None:
        found = affine(graph, consumer)
        assert found is not None
        tensor_at(graph, str(norm_parts(consumer)[1].target)).data.add_(found.scale * bias)


@dataclass(frozen=True)
class Held:
    """Batches of flat inputs, and what the original model answers to them."""

    inputs: Sequence[tuple[Tensor, ...]]
    answers: Sequence[Sequence[Tensor]]


def held_out(original: GraphModule, data: Sequence[tuple[Tensor, ...]]) -> Held:
    return Held(data, [flat_outputs(original, inputs) for inputs in data])


def damage(graph: GraphModule, held: Held) -> float:
    """How far the answers moved, in all outputs together; 0 for none.

    For scores of classes the mean divergence KL(original || changed) of the probabilities, in nats; for other
    outputs the squared difference over the variance around the mean.
    """
    parts: dict[int, list[tuple[float, float]]] = {}
    for inputs, wanted in zip(held.inputs, held.answers):
        for i, (mine, theirs) in enumerate(zip(flat_outputs(graph, inputs), wanted, strict=True)):
            if theirs.is_floating_point():
                found = divergence(mine, theirs) if is_classes(theirs) else squared(mine, theirs)
                parts.setdefault(i, []).append(found)
    return sum(sum(a for a, _ in part) / max(sum(b for _, b in part), 1e-12) for part in parts.values())


def is_classes(output: Tensor) -> bool:
    """Whether an output looks like one score for each of several classes."""
    return output.ndim == 2 and output.shape[1] > 1


def divergence(mine: Tensor, theirs: Tensor) -> tuple[float, float]:
    logs = functional.log_softmax(mine.double(), 1), functional.log_softmax(theirs.double(), 1)
    return float(functional.kl_div(*logs, reduction="sum", log_target=True)), float(len(mine))


def squared(mine: Tensor, theirs: Tensor) -> tuple[float, float]:
    return float((mine - theirs).square().sum()), float(
        (theirs - theirs.mean(0, keepdim=True)).square().sum()
    )


@torch.no_grad()
def flat_outputs(graph: GraphModule, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return list(flat(graph(*inputs)))
