"""How much each unit matters: norms of its weights, gradients, norm scales, or what its removal would cost.

Scores are comparable within a group; smaller goes first. What a removal would cost is in graph/obs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from karui.graph.consumers import Consumer, find_consumers, inputs_of, tensor_at, values_at
from karui.graph.gram import Moments
from karui.graph.program import flat
from karui.graph.trace import packet
from karui.graph.units import Units
from karui.graph.units.groups import Group
from karui.graph.units.labels import Labels, varying

aten = torch.ops.aten
MEMORY_BYTES = 1 << 29  # of second moments held at a time


@dataclass(frozen=True)
class Statistics:
    """Second moments of every consumer's inputs on the original model, by weight path."""

    consumers: Sequence[Consumer]
    moments: Mapping[str, Moments]


def collect(
    units: Units, graph: GraphModule, groups: Collection[Group], data: Sequence[tuple[Tensor, ...]]
) -> Statistics:
    """Of the layers that read units of ``groups``.

    One streaming pass, or several where the moments of all layers together would take too much memory.
    """
    members = frozenset().union(*(group.members for group in groups))
    consumers = readers_of(members, find_consumers(units))
    moments = {one.weight: Moments(one.bias is not None or one.norm is not None) for one in consumers}
    for part in portions(consumers, graph):
        names = {one.source.name for one in part}
        for inputs in data:
            values = values_at(graph, inputs, names)
            for one in part:
                moments[one.weight].add(inputs_of(one, values[one.source.name]))
    return Statistics(consumers, moments)


def portions(consumers: Sequence[Consumer], graph: GraphModule) -> list[list[Consumer]]:
    parts: list[list[Consumer]] = [[]]
    used = 0
    for one in consumers:
        width = one.width(graph) + 1
        size = 8 * one.groups * width**2
        if parts[-1] and used + size > MEMORY_BYTES:
            parts.append([])
            used = 0
        parts[-1].append(one)
        used += size
    return parts


def columns_of(consumer: Consumer, graph: GraphModule, labels: Collection[int]) -> Tensor:
    """Positions, in the unfolded inputs of a layer in one group, that belong to these units."""
    each = consumer.columns[0].repeat_interleave(consumer.area(graph))
    return torch.isin(each, torch.tensor(sorted(labels))).nonzero().reshape(-1)


def by_unit(group: Group, table: Mapping[int, float]) -> dict[int, float]:
    """Scores of the units of a group: that of a head is the sum of those of its channels."""
    return {unit: sum(table.get(part, 0.0) for part in group.parts(unit)) for unit in group.units}


def readers_of(members: Collection[int], consumers: Iterable[Consumer]) -> list[Consumer]:
    """The layers with inputs that belong to these units."""
    known = torch.tensor(sorted(members))
    return [one for one in consumers if bool(torch.isin(one.columns, known).any())]


def norms(units: Units, graph: GraphModule, group: Group, p: float, dim: int) -> dict[int, float]:
    """Mean over the weights that run along the units of the p-norm of each unit's slice.

    dim: 0 for weights that give the units out, 1 for those that read them.
    """
    scores: dict[int, float] = {}
    for path, axis in group.axes:
        tensor = tensor_at(graph, path)
        if not tensor.is_floating_point() or tensor.ndim < 2 or axis != dim:
            continue
        for label, value in slices(units, path, axis, lambda rows: rows.norm(p, dim=1), tensor).items():
            scores[label] = scores.get(label, 0.0) + value
    return by_unit(group, scores)


def norm_scales(units: Units, graph: GraphModule, group: Group) -> dict[int, float]:
    """|gamma| of the norms along the units (Liu et al. 2017, network slimming, arXiv:1708.06519)."""
    scores: dict[int, float] = {}
    gammas = {
        str(node.args[1].target)
        for node in graph.graph.nodes
        if packet(node) is aten.batch_norm and node.args[1] is not None
    }
    for path, axis in group.axes:
        if path in gammas:
            tensor = tensor_at(graph, path)
            for label, value in slices(units, path, axis, lambda rows: rows.abs().sum(1), tensor).items():
                scores[label] = scores.get(label, 0.0) + value
    return by_unit(group, scores)


def taylor(
    units: Units, graph: GraphModule, groups: Collection[Group], data: Sequence[tuple[Tensor, ...]]
) -> dict[int, float]:
    """|sum w dL/dw| over each unit's weights (Molchanov et al. 2019, arXiv:1906.10771).

    L is the squared length of the outputs around their mean, for no labels are needed: its gradient says
    which units move the answers.
    """
    weights = [path for path in units.weights if isinstance(tensor_at(graph, path), nn.Parameter)]
    totals = gradients(graph, [tensor_at(graph, path) for path in weights], data)
    scores: dict[int, float] = {}
    for path, total in zip(weights, totals):
        found = tensor_at(graph, path).detach() * total
        axes = {axis for group in groups for name, axis in group.axes if name == path}
        for axis in sorted(axes):
            for label, value in slices(units, path, axis, lambda rows: rows.sum(1), found).items():
                scores[label] = scores.get(label, 0.0) + value
    return {label: abs(value) for label, value in scores.items()}


def gradients(
    graph: GraphModule, tensors: Sequence[Tensor], data: Sequence[tuple[Tensor, ...]]
) -> list[Tensor]:
    """Of the squared length of the outputs around their mean, summed over batches."""
    totals = [torch.zeros_like(tensor) for tensor in tensors]
    asked = [tensor.requires_grad for tensor in tensors]
    for inputs in data:
        with torch.enable_grad():
            for tensor in tensors:
                tensor.requires_grad_(True)
            floats = [output for output in flat(graph(*inputs)) if output.is_floating_point()]
            value = torch.stack([(o - o.mean(0, keepdim=True)).square().mean() for o in floats]).sum()
            found = torch.autograd.grad(value, list(tensors), allow_unused=True)
        for total, gradient in zip(totals, found):
            if gradient is not None:
                total += gradient
    for tensor, before in zip(tensors, asked):
        tensor.requires_grad_(before)
    return totals


def slices(
    units: Units, path: str, axis: int, reduce: Callable[[Tensor], Tensor], tensor: Tensor
) -> dict[int, float]:
    """``reduce`` of (positions, everything else) of a tensor along an axis, summed over each class."""
    labels = units.weights[path]
    found: dict[int, float] = {}
    for plane in labels.planes:
        if varying(plane)[-1] != axis or len(varying(plane)) > 1:
            continue
        values = reduce(tensor.detach().movedim(axis, 0).reshape(tensor.shape[axis], -1))
        for label, value in zip(units.classes.find(plane.reshape(-1)).tolist(), values.tolist()):
            found[label] = found.get(label, 0.0) + value
    return found


def energies(
    units: Units, graph: GraphModule, group: Group, data: Sequence[tuple[Tensor, ...]]
) -> dict[int, float]:
    """For units that two activations share (the width of attention's queries and keys): E[q^2] E[k^2]."""
    members = group.members
    pairs = []
    for node in graph.graph.nodes:
        if packet(node) is aten.scaled_dot_product_attention:
            pairs.append((node.args[0], -1, node.args[1], -1))
        elif packet(node) in (aten.matmul, aten.bmm) and all(
            isinstance(units.of(a), Labels) for a in node.args[:2]
        ):
            pairs.append((node.args[0], -1, node.args[1], -2))
    scores = dict.fromkeys(members, 0.0)
    for one, axis, other, other_axis in pairs:
        sides = [
            squares(units, graph, part, along, data, members)
            for part, along in ((one, axis), (other, other_axis))
        ]
        for label in members & sides[0].keys() & sides[1].keys():
            scores[label] += sides[0][label] * sides[1][label]
    return by_unit(group, scores)


def squares(
    units: Units,
    graph: GraphModule,
    node: Node,
    axis: int,
    data: Sequence[tuple[Tensor, ...]],
    members: Collection[int],
) -> dict[int, float]:
    labels = units.of(node)
    planes = labels.along(axis)
    if not planes or set(units.classes.find(planes[0]).reshape(-1).tolist()).isdisjoint(members):
        return {}
    value = values_at(graph, data[0], {node.name})[node.name].square()
    roots = units.classes.find(planes[0])
    mean = value.mean([a for a in range(value.ndim) if roots.shape[a] == 1], keepdim=True)
    if mean.shape != roots.shape:
        return {}
    found: dict[int, float] = {}
    for label, part in zip(roots.reshape(-1).tolist(), mean.reshape(-1).tolist()):
        found[label] = found.get(label, 0.0) + part
    return found
