"""Where each channel of a layer's or a norm's result goes: through which operations, into which layers.

Operations on the way keep channels apart. Which feature of a reader belongs to which channel is found by
running them on a tensor that holds the number of its channel at every place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from karui.graph.consumers import tensor_at
from karui.graph.layerwise import Layer, find_layers
from karui.graph.ranges.places import MOVES, TRANSPOSED
from karui.graph.ranges.table import Range
from karui.graph.trace import Walk, argument, module_of, op_name, packet

aten = torch.ops.aten
MEANS = (aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d, aten.mean)
RELUS = (aten.relu, aten.relu_)
LEAKY = (aten.leaky_relu, aten.leaky_relu_)
KEPT = (*MOVES, *MEANS)  # what is multiplied by a factor comes out multiplied by it, whatever its sign
HOMOGENEOUS = (*KEPT, *RELUS, *LEAKY)  # and these where the factor is positive


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels; ``channels``: which one each of its inputs is, (inputs,)."""

    layer: Layer
    channels: Tensor


@dataclass(frozen=True)
class Flow:
    """From ``source`` to all ``readers`` of its ``count`` channels, over the operations ``on_the_way``."""

    source: Node
    count: int
    on_the_way: tuple[Node, ...]
    readers: tuple[Reader, ...]


class Blocked(Exception):
    """Why the channels of a node cannot be followed."""


class Flows:
    """Of one traced graph, run once on example inputs."""

    def __init__(self, graph: GraphModule, example: tuple[Tensor, ...]) -> None:
        self.graph, self.example = graph, example
        layers, self.skipped = find_layers(graph)
        self.by_node = {node: layer for layer in layers for node in layer.nodes}

    def follow(
        self, sources: Mapping[Node, int], allowed: Collection[Any]
    ) -> tuple[list[Flow], dict[Node, str]]:
        """sources: nodes and the axis of their channels. Gives the flows, and why others have none."""
        ways: dict[Node, list[Node]] = {}
        reasons: dict[Node, str] = {}
        for source in sources:
            try:
                ways[source] = list(self.way(source, allowed))
            except Blocked as why:
                reasons[source] = str(why)
        found: list[Flow] = []
        for source, labels in self.labelled({node: sources[node] for node in ways}, ways):
            try:
                found.append(self.flow(source, ways[source], labels, sources[source]))
            except Blocked as why:
                reasons[source] = str(why)
        return found, reasons

    def way(self, node: Node, allowed: Collection[Any]) -> Iterator[Node]:
        """All operations that the channels pass, up to the layers that read them."""
        for user in node.users:
            if packet(user) is aten.sym_size:
                continue
            if user in self.by_node and user.args[0] is node and node not in user.args[1:]:
                if len(self.by_node[user].nodes) > 1:
                    raise Blocked(f"it is read by {module_of(user)}, which is called more than once")
            elif packet(user) in allowed and user.args[0] is node:
                yield user
                yield from self.way(user, allowed)
            else:
                raise Blocked(said(user))

    def labelled(
        self, sources: Mapping[Node, int], ways: Mapping[Node, Sequence[Node]]
    ) -> Iterator[tuple[Node, dict[Node, Tensor]]]:
        """For each source its number of channel at every place of it and of what it is on the way."""
        passing = {node: source for source, way in ways.items() for node in way}
        found: dict[Node, dict[Node, Tensor]] = {}
        for node, args, kwargs, value in Walk(self.graph).steps(*self.example):
            if node in sources:
                found[node] = {node: numbers(value, sources[node])}
            if node in passing:
                labels = found[passing[node]]
                target: Callable[..., Tensor] = node.target  # type: ignore[assignment]
                labels[node] = target(labels[node.args[0]].clone(), *args[1:], **kwargs)  # type: ignore[index]
            source = passing.get(node, node)
            if source in found and len(found[source]) > len(ways[source]):
                yield source, found.pop(source)

    def flow(self, source: Node, way: Sequence[Node], labels: Mapping[Node, Tensor], axis: int) -> Flow:
        readers = [
            Reader(self.by_node[user], channels_of(user, labels[node]))
            for node in (source, *way)
            for user in node.users
            if user in self.by_node
        ]
        if not readers:
            raise Blocked("no layer reads it")
        return Flow(source, labels[source].shape[axis], tuple(way), tuple(readers))


def said(user: Node) -> str:
    if user.op == "output":
        return "it is an answer of the model"
    if packet(user) is aten.batch_norm:
        return f"a batch norm ({module_of(user)}) stands behind it: fold it first (fold_norm)"
    where = f" in {module_of(user)}" if module_of(user) else ""
    return f"it is read by {op_name(user)}{where}, which channels cannot be followed through"


def numbers(value: Tensor, axis: int) -> Tensor:
    """0, 1, ... along the axis, in the shape of ``value``."""
    axis %= value.ndim
    line = torch.arange(value.shape[axis], dtype=torch.float32)
    return line.reshape([-1] + [1] * (value.ndim - axis - 1)).expand(value.shape).contiguous()


def channels_of(reader: Node, labels: Tensor) -> Tensor:
    """The channel of each input of a layer."""
    axis = labels.ndim - 1 if packet(reader) is aten.linear else 1
    lines = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)
    found = lines[:, 0].round()
    if not bool(((lines - found.unsqueeze(1)).abs() < 1e-3).all()):
        raise Blocked("its channels are mixed on the way")
    return found.long()


def output_axis(node: Node) -> int:
    """Of the channels, in the result of a layer."""
    return -1 if packet(node) is aten.linear else 1


def output_reach(weight: Tensor, layer: Layer) -> Tensor:
    """The largest magnitude of each output's weights, (outputs,)."""
    return outputs_first(weight, layer).abs().amax(1)


def outputs_first(weight: Tensor, layer: Layer) -> Tensor:
    """(outputs, weights of each); a copy where the layer is transposed."""
    if packet(layer.nodes[0]) not in TRANSPOSED:
        return weight.flatten(1)
    groups = layer.groups
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return parts.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def input_reach(weight: Tensor, layer: Layer) -> Tensor:
    """The largest magnitude of the weights on each input, (inputs,)."""
    if packet(layer.nodes[0]) in TRANSPOSED:
        return weight.abs().flatten(1).amax(1)
    groups = layer.groups
    parts = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return parts.abs().amax((1, 3)).reshape(-1)


def scale_outputs(graph: GraphModule, layer: Layer, factors: Tensor) -> None:
    """Multiply what the layer gives out, (outputs,), in its weight and bias."""
    weight = tensor_at(graph, layer.names[0])
    if packet(layer.nodes[0]) in TRANSPOSED:
        groups = layer.groups
        parts = factors.reshape(groups, 1, weight.shape[1]).expand(-1, weight.shape[0] // groups, -1)
        factors_of_weight = parts.reshape(weight.shape[0], weight.shape[1])
        weight.mul_(factors_of_weight.reshape([*weight.shape[:2]] + [1] * (weight.ndim - 2)))
    else:
        weight.mul_(factors.reshape([-1] + [1] * (weight.ndim - 1)))
    if layer.bias is not None:
        tensor_at(graph, layer.bias).mul_(factors)


def scale_inputs(graph: GraphModule, layer: Layer, factors: Tensor) -> None:
    """Multiply the weights on each input by (inputs,)."""
    weight = tensor_at(graph, layer.names[0])
    if packet(layer.nodes[0]) in TRANSPOSED:
        weight.mul_(factors.reshape([-1] + [1] * (weight.ndim - 1)))
        return
    groups = layer.groups
    parts = factors.reshape(groups, 1, weight.shape[1]).expand(-1, len(weight) // groups, -1)
    weight.mul_(parts.reshape([*weight.shape[:2]] + [1] * (weight.ndim - 2)))


def why_not(layer: Layer, known: Mapping[str, Range]) -> str:
    """Why a layer's numbers must stay as they are; empty if they may change."""
    if len(layer.nodes) > 1:
        return "it is called more than once"
    if len(layer.names) > 1:
        return "its weight has two names"
    if layer.bias is None and argument(layer.nodes[0], 2, "bias") is not None:
        return "its bias is computed or shared"
    return "its weight was rounded already" if layer.path in known and known[layer.path].learned else ""
