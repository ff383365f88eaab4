"""Letting what stays take over from what goes: least squares, layer by layer, on the changed inputs.

Targets are the original model's. Where a layer's result is added to a shortcut, the target is the
original sum minus what the shortcut, already changed, delivers; so drift from earlier layers is made up
for as well. No labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    matrix_of,
    outputs_of,
    store_matrix,
    tensor_at,
)
from karui.graph.cut.shapes import Gone, kept, zero_out
from karui.graph.gram import Moments, fit
from karui.graph.program import flat
from karui.graph.rerun import Rerun
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
    todo = [
        one
        for one in in_order(find_consumers(units), graph)
        if one.source.name in changed or bool(gone.at(one.columns).any())
    ]
    runs = Rerun(graph, data), Rerun(original, data)
    for number, consumer in enumerate(todo):
        settled = min(runs[0].first_read(changed_by(graph, one)) for one in todo[number:])
        refit(graph, runs, consumer, gone, settled)
    zero_out(graph, units, gone)
    return [one.weight for one in todo]


def changed_by(graph: GraphModule, consumer: Consumer) -> Iterator[Tensor]:
    """The stored tensors that a refit writes into."""
    yield tensor_at(graph, consumer.weight)
    if consumer.bias is not None:
        yield tensor_at(graph, consumer.bias)
    if consumer.norm is not None:
        yield tensor_at(graph, str(norm_parts(consumer)[1].target))


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
    graph: GraphModule, runs: tuple[Rerun, Rerun], consumer: Consumer, gone: Gone, settled: int
) -> None:
    """One layer: new weights on the kept columns, and a new bias where it has a place for one."""
    ones = consumer.bias is not None or consumer.norm is not None
    halves = (Moments(ones), Moments(ones))
    stays = ~gone.at(consumer.columns[0])  # with several groups, columns leave each of them later
    for batch in range(len(runs[0].data)):
        x, y = problem(graph, runs, consumer, batch, settled)
        if consumer.groups == 1:
            x = x.index_select(-1 if consumer.kind == "linear" else 1, stays.nonzero().reshape(-1))
        halves[batch % 2].add(inputs_of(consumer, x), outputs_of(consumer, y))
    bias, matrix = bias_of(graph, consumer), matrix_of(graph, consumer).clone()
    for group in range(consumer.groups):
        refit_group(graph, consumer, gone, group, (halves, bias, matrix))
    store_matrix(graph, consumer, matrix)
    store_bias(graph, consumer, bias)


def refit_group(
    graph: GraphModule,
    consumer: Consumer,
    gone: Gone,
    group: int,
    found: tuple[tuple[Moments, Moments], Tensor, Tensor],
) -> None:
    """One group of a layer: its rows of the bias and the matrix, in place."""
    halves, bias, matrix = found
    outputs, ones = len(matrix) // consumer.groups, halves[0].ones
    rows = slice(group * outputs, (group + 1) * outputs)
    stays = ~gone.at(consumer.columns[group]).repeat_interleave(consumer.area(graph))
    start = matrix[rows].T.double()
    if ones:
        stays = torch.cat([stays, torch.ones(1, dtype=torch.bool)])
        start = torch.cat([start, bias[rows].double().unsqueeze(0)])
    if not bool(stays.any()):
        return
    if consumer.groups == 1:
        start, columns = start[stays], torch.ones(int(stays.sum()), dtype=torch.bool)
    new = fit(halves, group, start, stays if consumer.groups > 1 else columns).T.float()
    whole = matrix.new_zeros(outputs, len(stays))
    whole[:, stays] = new[:, stays] if consumer.groups > 1 else new
    chosen = (~gone.at(consumer.rows) & invertible(graph, consumer))[rows]
    matrix[rows] = torch.where(chosen.unsqueeze(1), whole[:, : matrix.shape[1]], matrix[rows])
    if ones:
        bias[rows] = torch.where(chosen, whole[:, -1], bias[rows])


def problem(
    graph: GraphModule, runs: tuple[Rerun, Rerun], consumer: Consumer, batch: int, settled: int
) -> tuple[Tensor, Tensor]:
    """The layer's input in the changed model, and the output that would be right."""
    source, (now, original) = consumer.source.name, runs
    if consumer.meets is None:
        name = consumer.node.name
        wanted = original.values(batch, {name}, settled)[name]
        return now.values(batch, {source}, settled)[source], wanted
    total, other = (one.name for one in consumer.meets)
    found = now.values(batch, {source, other}, settled)
    wanted = original.values(batch, {total}, settled)[total] - found[other]
    return found[source], before_norm(graph, consumer, wanted)


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
        return torch.ones(len(consumer.rows), dtype=torch.bool)
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
    """How far the answers of ``graph`` to the held samples moved; see ``moved``."""
    return moved((flat_outputs(graph, inputs) for inputs in held.inputs), held)


def moved(answers: Iterable[Sequence[Tensor]], held: Held) -> float:
    """How far these answers are from the held ones, in all outputs together; 0 for none.

    For scores of classes the mean divergence KL(original || changed) of the probabilities, in nats; for other
    outputs the squared difference over the variance around the mean.
    """
    parts: dict[int, list[tuple[float, float]]] = {}
    for found, wanted in zip(answers, held.answers, strict=True):
        for i, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
            if theirs.is_floating_point():
                error = divergence(mine, theirs) if is_classes(theirs) else squared(mine, theirs)
                parts.setdefault(i, []).append(error)
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
