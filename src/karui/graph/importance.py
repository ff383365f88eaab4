"""How much each unit matters: norms of its weights, gradients, norm scales, or what its removal would cost.

Scores are comparable within a group; smaller goes first. ``obs`` asks what the layers that read the unit
would lose after the other units have taken over, from second moments of their inputs (graph/gram); all
readers count.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from karui.graph.consumers import Consumer, find_consumers, inputs_of, stored_weights, tensor_at, values_at
from karui.graph.gram import Elimination, Moments, elimination
from karui.graph.program import flat
from karui.graph.trace import packet
from karui.graph.units import Units
from karui.graph.units.groups import Group
from karui.graph.units.labels import Labels, varying

aten = torch.ops.aten
STEP = 0.03  # share of the units left that is eliminated before costs are looked at again
MEMORY_BYTES = 1 << 29  # of second moments held at a time


@dataclass(frozen=True)
class Statistics:
    """Second moments of every consumer's inputs on the original model, by weight path."""

    consumers: Sequence[Consumer]
    moments: Mapping[str, Moments]


def collect(units: Units, graph: GraphModule, data: Sequence[tuple[Tensor, ...]]) -> Statistics:
    """One streaming pass, or several where the moments of all layers together would take too much memory."""
    consumers = find_consumers(units)
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
        width = tensor_at(graph, one.weight)[0].numel() + 1
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


def obs_order(graph: GraphModule, group: Group, found: Statistics, limit: int) -> list[int]:
    """The units of a group in the order in which greedy elimination removes them.

    Costs are shares of the output energy of the layers that read the units, summed over these layers.
    Only the first ``limit`` are looked for one after the other.
    """
    readers = readers_of(group, found.consumers)
    states = [(one, eliminate_from(one, graph, found)) for one in readers if one.groups == 1]
    extra = [by_unit(group, wanda(one, graph, found)) for one in readers if one.groups > 1]
    columns = {
        (unit, i): columns_of(one, graph, group.parts(unit))
        for unit in group.units
        for i, (one, _) in enumerate(states)
    }

    def cost(unit: int) -> float:
        spent = sum(
            state.cost(columns[unit, i]) for i, (_, state) in enumerate(states) if len(columns[unit, i])
        )
        return spent + sum(table[unit] for table in extra)

    left = list(group.units)
    order: list[int] = []
    while left:
        ranked = sorted(left, key=cost)
        step = ranked[: max(1, round(STEP * len(left)))] if len(order) < limit else ranked
        order += step
        left = [unit for unit in left if unit not in step]
        for i, (_, state) in enumerate(states):
            going = torch.cat([columns[unit, i] for unit in step])
            if len(going) and left:
                state.remove(going)
    return order


def obs_scores(
    units: Units,
    graph: GraphModule,
    group: Group,
    found: Statistics,
    data: Sequence[tuple[Tensor, ...]],
    limit: int,
) -> Mapping[int, float]:
    """The place of each unit in ``obs_order``; energies or norms where no layer reads the units."""
    if not readers_of(group, found.consumers):
        shared = energies(units, graph, group, data)
        return shared if any(shared.values()) else norms(units, graph, group, 2.0, 0)
    order = obs_order(graph, group, found, limit)
    return {unit: float(place) for place, unit in enumerate(order)}


def eliminate_from(consumer: Consumer, graph: GraphModule, found: Statistics) -> Elimination:
    moments = found.moments[consumer.weight]
    return elimination(stored_weights(graph, consumer, ones=moments.ones), moments.H[0])


def wanda(consumer: Consumer, graph: GraphModule, found: Statistics) -> dict[int, float]:
    """For grouped layers: the energy each unit brings in, w^2 E[x^2] (Sun et al. 2023, arXiv:2306.11695)."""
    weight = tensor_at(graph, consumer.weight).detach().double().flatten(1)
    per = len(weight) // consumer.groups
    H = found.moments[consumer.weight].H
    energy: dict[int, float] = {}
    for group in range(consumer.groups):
        part = (
            weight[group * per : (group + 1) * per].square().sum(0) * H[group].diagonal()[: weight.shape[1]]
        )
        labels = consumer.columns[group].repeat_interleave(consumer.area(graph)).tolist()
        for label, value in zip(labels, part.tolist()):
            energy[label] = energy.get(label, 0.0) + value
    scale = max(sum(energy.values()), 1e-12)
    return {label: value / scale for label, value in energy.items()}


def readers_of(group: Group, consumers: Iterable[Consumer]) -> list[Consumer]:
    members = torch.tensor(sorted(group.members))
    return [one for one in consumers if bool(torch.isin(one.columns, members).any())]


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
