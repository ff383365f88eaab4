"""Layers by their stored weights, one after the other: what each reads now, and what it ought to answer.

The inputs are those of the model as it stands, with the layers before changed already; the outputs those
of the original. Either the graphs are run again for every layer, no further than to it, so that memory holds
one batch and the second moments of one layer; or, where the values of all batches at one place take less than
``HELD_BYTES``, once for all of the layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from karui.graph.consumers import KINDS, batches, rows_in, rows_out, values_at
from karui.graph.gram import Moments
from karui.graph.ranges.calibrate import checked
from karui.graph.ranges.places import LAYERS, bias_of, is_float, weight_axis
from karui.graph.trace import ROOT, Trace, argument, packet

if TYPE_CHECKING:
    from karui.data import Arrays

LINEAR = torch.ops.aten.linear
BATCH = 32
HELD_BYTES = 1 << 31  # of values held to go through many layers in one pass; beyond, each takes its own
UNFOLDED_BYTES = 1 << 26  # of a layer's inputs, unfolded, that are held at a time


@dataclass(frozen=True)
class Layer:
    """A stored weight that nothing but convolutions or linear layers read.

    names: its paths in the graph (tied weights have several). nodes: the operations that multiply by it.
    bias: the path, in the graph, of the bias that they all add, if there is one that only they read.
    """

    names: tuple[str, ...]
    nodes: tuple[Node, ...]
    bias: str | None

    @property
    def path(self) -> str:
        """Of the weight in the user's model."""
        return self.names[0].removeprefix(ROOT)

    @property
    def owner(self) -> str:
        """The module that holds the weight."""
        return owner_of(self.path)

    @property
    def axis(self) -> int:
        """Of the outputs, in the weight."""
        return weight_axis(self.nodes[0])

    @property
    def groups(self) -> int:
        found: int = argument(self.nodes[0], 6, "groups", 1)
        return found

    @property
    def unfolds(self) -> bool:
        """Whether its inputs can be had as rows of a matrix."""
        return all(packet(node) in KINDS for node in self.nodes)


def find_layers(graph: GraphModule) -> tuple[list[Layer], dict[str, str]]:
    """In the order in which they are computed; and the modules whose weight is left out, with why."""
    found: dict[int, list[Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and isinstance(node.target, str):
            found.setdefault(id(tensor_of(graph, node)), []).append(node)
    layers: list[Layer] = []
    reasons: dict[str, str] = {}
    for stored in found.values():
        readers = [user for node in stored for user in node.users]
        names = tuple(dict.fromkeys(str(node.target) for node in stored))
        reading = [user for user in readers if is_layer(user) and user.args[1] in stored]
        if reading and len(reading) < len(readers):
            reasons[owner_of(names[0].removeprefix(ROOT))] = "its weight is read in another way too"
        elif reading:
            layers.append(Layer(names, tuple(reading), common_bias(graph, reading)))
    place = {node: i for i, node in enumerate(graph.graph.nodes)}
    return sorted(layers, key=lambda one: min(place[node] for node in one.nodes)), reasons


def owner_of(path: str) -> str:
    """The module that holds a parameter."""
    return path.rpartition(".")[0]


def tensor_of(graph: GraphModule, node: Node) -> object:
    """What a ``get_attr`` reads; it may be something else than a tensor."""
    owner, _, name = str(node.target).rpartition(".")
    return getattr(graph.get_submodule(owner), name)


def is_layer(node: Node) -> bool:
    return packet(node) in LAYERS and is_float(node)


def common_bias(graph: GraphModule, nodes: Sequence[Node]) -> str | None:
    biases = {bias_of(node) for node in nodes}
    names = {str(bias.target) for bias in biases if bias is not None}
    if len(names) != 1 or None in biases:
        return None
    readers = {user for bias in biases if bias is not None for user in bias.users}
    return names.pop() if readers <= set(nodes) else None


def moments_of(
    layer: Layer, now: GraphModule, original: GraphModule, data: Sequence[tuple[Tensor, ...]]
) -> tuple[Moments, Moments]:
    """Of the layer's inputs in ``now`` and its outputs in ``original``, on two halves of the batches.

    There is a column of ones where the layer has a bias; a bias that is no part of it is subtracted.
    """
    halves = (Moments(layer.bias is not None), Moments(layer.bias is not None))
    for number, inputs in enumerate(data):
        given = values_at(now, inputs, {source_of(node) for node in layer.nodes})
        wanted = values_at(
            original, inputs, {name for node in layer.nodes for name in (node.name, *other(layer, node))}
        )
        for node in layer.nodes:
            y = wanted[node.name]
            for name in other(layer, node):
                y = y - wanted[name].reshape(
                    [-1] + [1] * (0 if packet(node) is LINEAR else node.meta["val"].ndim - 2)
                )
            add(halves[number % 2], node, checked(given[source_of(node)], node.name), y)
    return halves


def moments_at(layer: Layer, node: Node, pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Moments, Moments]:
    """The same from what ``node`` reads now and what it answered in the original, batch after batch."""
    halves = (Moments(layer.bias is not None), Moments(layer.bias is not None))
    for number, (x, y) in enumerate(pairs):
        add(halves[number % 2], node, checked(x, node.name), y)
    return halves


def source_of(node: Node) -> str:
    return str(node.args[0].name)  # type: ignore[union-attr]


def other(layer: Layer, node: Node) -> list[str]:
    """The bias that ``node`` adds, where it is not the layer's own."""
    bias = argument(node, 2, "bias")
    return [] if layer.bias is not None or not isinstance(bias, Node) else [bias.name]


def add(moments: Moments, node: Node, x: Tensor, y: Tensor) -> None:
    """In pieces: unfolded, the inputs of a convolution are as many times larger as its kernel has places."""
    size = 0 if packet(node) is LINEAR else 4 * kernel_of(node) * math.prod(y.shape[2:])
    each = max(1, UNFOLDED_BYTES // max(1, size))
    for part, target in zip(torch.split(x, each), torch.split(y, each)):
        moments.add(rows_in(node, part), rows_out(node, target))


def kernel_of(node: Node) -> int:
    """Columns of the unfolded inputs of a convolution, in all groups."""
    groups: int = argument(node, 6, "groups", 1)
    return groups * int(node.args[1].meta["val"][0].numel())  # type: ignore[union-attr]


def samples(traced: Trace, arrays: Arrays, most: int) -> list[tuple[Tensor, ...]]:
    """Calibration data in batches that the graph takes; at least two where there are two samples."""
    count = min(most, len(next(iter(arrays.values()))))
    size = max(1, min(BATCH, -(-count // 2))) if traced.dynamic else len(traced.example[0])
    parts = batches(arrays, size, most)
    whole = [part for part in parts if traced.dynamic or len(part[0]) == size]
    return whole or [traced.inputs(arrays, size)]  # fewer than a fixed batch: some are repeated
