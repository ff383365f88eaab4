"""The layers that read units through a weight: there the other units can take over a removed one's part."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional

from karui.graph.trace import Walk, argument, packet
from karui.graph.units import Units
from karui.graph.units.classes import FIXED
from karui.graph.units.labels import Labels

aten = torch.ops.aten
KINDS = {aten.linear: "linear", aten.conv1d: "conv", aten.conv2d: "conv", aten.conv3d: "conv"}
TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
POSITIONS = 64  # of an image or a sequence that are looked at, evenly spaced


@dataclass(frozen=True)
class Consumer:
    """A convolution or linear layer with a stored weight that nothing else uses.

    columns: class of each input channel, (groups, channels of one group). rows: class of each output channel.
    norm: the batch norm that alone reads it. meets: the sum that the (normed) result goes into, and its other
    operand.
    """

    node: Node
    kind: str
    groups: int
    weight: str
    bias: str | None
    columns: Tensor
    rows: Tensor
    norm: Node | None
    meets: tuple[Node, Node] | None

    @property
    def source(self) -> Node:
        found = self.node.args[0]
        assert isinstance(found, Node)
        return found

    def area(self, graph: GraphModule) -> int:
        """Positions of the kernel."""
        return math.prod(tensor_at(graph, self.weight).shape[2:])

    def width(self, graph: GraphModule) -> int:
        """Columns of one group: what each output is a product of, without a bias."""
        return self.columns.shape[1] * self.area(graph)


def tensor_at(graph: GraphModule, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    found = getattr(graph.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found


def matrix_of(graph: GraphModule, consumer: Consumer) -> Tensor:
    """The weight as (outputs, columns of one group); shares its memory where it lies like that."""
    weight = tensor_at(graph, consumer.weight).detach()
    if consumer.kind != "transposed":
        return weight.flatten(1)
    parts = weight.reshape(consumer.groups, -1, weight.shape[1], consumer.area(graph))
    return parts.transpose(1, 2).reshape(consumer.groups * weight.shape[1], -1)


def store_matrix(graph: GraphModule, consumer: Consumer, matrix: Tensor) -> None:
    """The inverse, in place."""
    weight = tensor_at(graph, consumer.weight).data
    if consumer.kind == "transposed":
        parts = matrix.reshape(consumer.groups, weight.shape[1], -1, consumer.area(graph))
        matrix = parts.transpose(1, 2)
    weight.copy_(matrix.reshape(weight.shape))


def stored_weights(graph: GraphModule, consumer: Consumer, *, ones: bool) -> Tensor:
    """(outputs, columns of one group) in float64, with ``ones`` the bias, or zeros, as a last column."""
    weight = matrix_of(graph, consumer).double()
    if not ones:
        return weight
    return torch.cat([weight, bias_of(graph, consumer).double().unsqueeze(1)], 1)


def bias_of(graph: GraphModule, consumer: Consumer) -> Tensor:
    """The layer's own bias, or zeros: a norm behind it can take one in."""
    if consumer.bias is not None:
        return tensor_at(graph, consumer.bias).detach().clone()
    return torch.zeros(len(consumer.rows))


def find_consumers(units: Units) -> list[Consumer]:
    """In the order in which the model computes them."""
    nodes = units.trace.graph.graph.nodes
    return [found for node in nodes if (found := consumer_at(units, node)) is not None]


def consumer_at(units: Units, node: Node) -> Consumer | None:
    kind = kind_of(node)
    if kind is None or not stored_once(weight := node.args[1]):
        return None
    bias = argument(node, 2, "bias")
    if bias is not None and not stored_once(bias):
        return None
    groups = argument(node, 6, "groups", 1)
    if not isinstance(groups, int):
        return None
    axis = -1 if kind == "linear" else 1
    rows = classes_along(units, units.of(node), axis)
    inputs = (units.of(weight), 0 if kind == "transposed" else 1)
    columns = classes_along(units, *(inputs if groups == 1 else (units.of(node.args[0]), axis)))
    norm = norm_after(node)
    return Consumer(
        node=node,
        kind=kind,
        groups=groups,
        weight=str(weight.target),
        bias=None if bias is None else str(bias.target),
        columns=columns.reshape(groups, -1),
        rows=rows,
        norm=norm,
        meets=sum_after(norm or node),
    )


def kind_of(node: Node) -> str | None:
    if node.op != "call_function":
        return None
    return "transposed" if packet(node) in TRANSPOSED else KINDS.get(packet(node))


def stored_once(node: object) -> TypeGuard[Node]:
    return isinstance(node, Node) and node.op == "get_attr" and len(node.users) == 1


def classes_along(units: Units, labels: Labels, axis: int) -> Tensor:
    """The class of each position along an axis."""
    axis %= len(labels.shape)
    found = torch.full((labels.shape[axis],), FIXED)
    for plane in labels.along(axis):
        line = units.classes.find(plane.movedim(axis, 0).reshape(plane.shape[axis], -1)[:, 0])
        found = torch.where(found == FIXED, line, found)
    return found


def norm_after(node: Node) -> Node | None:
    user = only_user(node)
    if user is None or packet(user) is not aten.batch_norm or user.args[5] or user.args[0] is not node:
        return None
    return user if all(isinstance(part, Node) and part.op == "get_attr" for part in user.args[1:5]) else None


def only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def sum_after(node: Node) -> tuple[Node, Node] | None:
    """The plain sum of this result and another that does not depend on it."""
    user = only_user(node)
    while user is not None and packet(user) in (aten.dropout, aten.clone, aten.contiguous):
        node, user = user, only_user(user)
    if user is None or packet(user) not in (aten.add, aten.add_) or user.kwargs:
        return None
    others = [arg for arg in user.args if isinstance(arg, Node) and arg is not node]
    return (user, others[0]) if len(others) == 1 and len(user.args) == 2 else None


def in_order(consumers: Collection[Consumer], graph: GraphModule) -> list[Consumer]:
    """Topological; of several that meet in one sum the widest comes last: it can make up for the others."""
    place = {node: i for i, node in enumerate(graph.graph.nodes)}

    def key(one: Consumer) -> tuple[int, int, int]:
        end = one.meets[0] if one.meets else one.node
        return place[end], one.width(graph), place[one.node]

    return sorted(consumers, key=key)


def values_at(graph: GraphModule, inputs: tuple[Tensor, ...], names: Collection[str]) -> dict[str, Tensor]:
    """Results of some nodes, by name; the graph is run no further than to the last of them."""
    found: dict[str, Tensor] = {}
    for node, _, _, value in Walk(graph).steps(*inputs):
        if node.name in names:
            found[node.name] = value
            if len(found) == len(names):
                break
    return found


def inputs_of(consumer: Consumer, x: Tensor) -> Tensor:
    """(groups, rows, columns of one group): what each position of the output is a product of."""
    return rows_in(consumer.node, x)


def outputs_of(consumer: Consumer, y: Tensor) -> Tensor:
    """(groups, rows, outputs of one group), in the order of ``inputs_of``."""
    return rows_out(consumer.node, y)


def rows_in(node: Node, x: Tensor) -> Tensor:
    """(groups, rows, columns of one group) of a layer of ``KINDS`` or ``TRANSPOSED``."""
    if packet(node) is aten.linear:
        rows = x.reshape(len(x), -1, x.shape[-1])
        return rows[:, positions(node, rows.shape[1])].reshape(1, -1, x.shape[-1])
    seen, groups = windows(node, x), argument(node, 6, "groups", 1)
    sizes = seen.shape[2 : x.ndim]
    places = torch.unravel_index(positions(node, math.prod(sizes)), sizes)
    found: Tensor = aten.index(seen, [None, None, *places]).movedim(2, 1)
    return found.reshape(found.shape[0] * found.shape[1], groups, -1).transpose(0, 1)


def windows(node: Node, x: Tensor) -> Tensor:
    """(samples, channels, *positions of the output, *kernel): what each output is computed from, as a view.

    A transposed convolution is one that goes, with its kernel turned round, in single steps over an image
    with zeros between its pixels.
    """
    weight: Any = node.args[1]
    kernel, count = list(weight.meta["val"].shape[2:]), x.ndim - 2
    transposed, padding = packet(node) in TRANSPOSED, argument(node, 4, "padding", 0)
    stride = each(argument(node, 3, "stride", 1), count)
    dilation = each(argument(node, 7 if transposed else 5, "dilation", 1), count)
    if transposed:
        reach = [step * (size - 1) for step, size in zip(dilation, kernel)]
        more = each(argument(node, 5, "output_padding", 0), count)
        ends = [(r - p, r - p + m) for r, p, m in zip(reach, each(padding, count), more)]
        x, stride = spaced(x, stride), [1] * count
    elif isinstance(padding, str):
        ends = same(kernel, dilation, padding)
    else:
        ends = [(p, p) for p in each(padding, count)]
    x = functional.pad(x, [end for pair in reversed(ends) for end in pair])
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation), 2):
        x = x.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    return x.flip(list(range(2 + count, 2 + 2 * count))) if transposed else x


def spaced(x: Tensor, stride: Sequence[int]) -> Tensor:
    """With zeros between the pixels."""
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride)]
    found = x.new_zeros(*x.shape[:2], *sizes)
    found[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    return found


def same(kernel: Sequence[int], dilation: Sequence[int], padding: str) -> list[tuple[int, int]]:
    """The zeros that ``same`` stands for; where their number is odd there is one more behind."""
    widths = [step * (size - 1) if padding == "same" else 0 for step, size in zip(dilation, kernel)]
    return [(width // 2, width - width // 2) for width in widths]


def each(value: Any, count: int) -> list[int]:
    """One number for all axes, or one for each."""
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * count if len(sizes) == 1 else sizes


def rows_out(node: Node, y: Tensor) -> Tensor:
    """(groups, rows, outputs of one group), in the order of ``rows_in``."""
    linear = packet(node) is aten.linear
    rows = y.reshape(len(y), -1, y.shape[-1]) if linear else y.flatten(2).transpose(1, 2)
    rows, groups = rows[:, positions(node, rows.shape[1])], 1 if linear else argument(node, 6, "groups", 1)
    return rows.reshape(rows.shape[0] * rows.shape[1], groups, -1).transpose(0, 1)


def positions(node: Node, count: int) -> Tensor:
    """At most ``POSITIONS`` of an output's, evenly spaced; drawn where neighbours see other weights."""
    if count <= POSITIONS:
        return torch.arange(count)
    if packet(node) in TRANSPOSED:
        return torch.randperm(count, generator=torch.Generator().manual_seed(count))[:POSITIONS].sort().values
    return torch.linspace(0, count - 1, POSITIONS).round().long()


def batches(arrays: Mapping[str, Any], size: int, limit: int) -> Iterator[tuple[Tensor, ...]]:
    """Flat inputs of at most ``limit`` samples, ``size`` at a time; the last may be smaller."""
    count = min(limit, len(next(iter(arrays.values()))))
    for start in range(0, count, size):
        yield tuple(torch.tensor(array[start : min(start + size, count)]) for array in arrays.values())
