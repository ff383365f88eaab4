"""The layers that read units through a weight: there the other units can take over a removed one's part."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
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
KINDS = {aten.linear: "linear", aten.conv1d: "conv", aten.conv2d: "conv"}
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


def tensor_at(graph: GraphModule, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    found = getattr(graph.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found


def stored_weights(graph: GraphModule, consumer: Consumer, *, ones: bool) -> Tensor:
    """(outputs, columns of one group) in float64, with ``ones`` the bias, or zeros, as a last column."""
    weight = tensor_at(graph, consumer.weight).detach().double().flatten(1)
    if not ones:
        return weight
    return torch.cat([weight, bias_of(graph, consumer).double().unsqueeze(1)], 1)


def bias_of(graph: GraphModule, consumer: Consumer) -> Tensor:
    """The layer's own bias, or zeros: a norm behind it can take one in."""
    if consumer.bias is not None:
        return tensor_at(graph, consumer.bias).detach().clone()
    return torch.zeros(len(tensor_at(graph, consumer.weight)))


def find_consumers(units: Units) -> list[Consumer]:
    """In the order in which the model computes them."""
    nodes = units.trace.graph.graph.nodes
    return [found for node in nodes if (found := consumer_at(units, node)) is not None]


def consumer_at(units: Units, node: Node) -> Consumer | None:
    kind = KINDS.get(packet(node)) if node.op == "call_function" else None
    if kind is None or not stored_once(weight := node.args[1]):
        return None
    bias = argument(node, 2, "bias")
    if bias is not None and not stored_once(bias):
        return None
    groups, padding = argument(node, 6, "groups", 1), argument(node, 4, "padding", 0)
    if not isinstance(groups, int) or isinstance(padding, str):
        return None
    axis = 1 if kind == "conv" else -1
    rows = classes_along(units, units.of(node), axis)
    columns = classes_along(
        units, *((units.of(weight), 1) if groups == 1 else (units.of(node.args[0]), axis))
    )
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
    if user is None or packet(user) is not aten.add or user.kwargs:
        return None
    others = [arg for arg in user.args if isinstance(arg, Node) and arg is not node]
    return (user, others[0]) if len(others) == 1 and len(user.args) == 2 else None


def in_order(consumers: Collection[Consumer], graph: GraphModule) -> list[Consumer]:
    """Topological; of several that meet in one sum the widest comes last: it can make up for the others."""
    place = {node: i for i, node in enumerate(graph.graph.nodes)}

    def key(one: Consumer) -> tuple[int, int, int]:
        end = one.meets[0] if one.meets else one.node
        return place[end], tensor_at(graph, one.weight)[0].numel(), place[one.node]

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
    """(groups, rows, columns of one group) of a layer of ``KINDS``."""
    if packet(node) is aten.linear:
        return thinned(x.reshape(len(x), -1, x.shape[-1])).reshape(1, -1, x.shape[-1])
    named = ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    stride, padding, dilation = (argument(node, *one) for one in named)
    weight: Any = node.args[1]
    kernel: Any = list(weight.meta["val"].shape[2:])
    if isinstance(padding, str):
        x, padding = padded(x, kernel, dilation, padding), 0
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    if x.ndim == 3:
        x, kernel = x.unsqueeze(2), [1, *kernel]
        stride, padding, dilation = ((a, b[-1]) for a, b in ((1, stride), (0, padding), (1, dilation)))
    parts = functional.unfold(x, kernel, dilation, padding, stride)
    rows, groups = thinned(parts.transpose(1, 2)), argument(node, 6, "groups", 1)
    return rows.reshape(-1, groups, rows.shape[-1] // groups).transpose(0, 1)


def padded(x: Tensor, kernel: list[int], dilation: Any, padding: str) -> Tensor:
    """``x`` with the zeros that ``same`` stands for; where their number is odd there is one more behind."""
    if padding == "valid":
        return x
    steps = [dilation] * len(kernel) if isinstance(dilation, int) else list(dilation) * len(kernel)
    widths = [step * (size - 1) for step, size in zip(steps, kernel)]
    return functional.pad(x, [end for w in reversed(widths) for end in (w // 2, w - w // 2)])


def pair(value: Any) -> tuple[int, int]:
    sizes = [value] if isinstance(value, int) else list(value)
    return (sizes[0], sizes[-1])


def rows_out(node: Node, y: Tensor) -> Tensor:
    """(groups, rows, outputs of one group), in the order of ``rows_in``."""
    if packet(node) is aten.linear:
        return thinned(y.reshape(len(y), -1, y.shape[-1])).reshape(1, -1, y.shape[-1])
    rows, groups = thinned(y.reshape(len(y), y.shape[1], -1).transpose(1, 2)), argument(node, 6, "groups", 1)
    return rows.reshape(-1, groups, y.shape[1] // groups).transpose(0, 1)


def thinned(rows: Tensor) -> Tensor:
    """(samples, positions, n): at most ``POSITIONS`` positions of each sample."""
    count = rows.shape[1]
    if count <= POSITIONS:
        return rows
    return rows[:, torch.linspace(0, count - 1, POSITIONS).round().long()]


def batches(arrays: Mapping[str, Any], size: int, limit: int) -> Iterator[tuple[Tensor, ...]]:
    """Flat inputs of at most ``limit`` samples, ``size`` at a time; the last may be smaller."""
    count = min(limit, len(next(iter(arrays.values()))))
    for start in range(0, count, size):
        yield tuple(torch.tensor(array[start : min(start + size, count)]) for array in arrays.values())
