"""Which tensors of a captured program have ranges, and which of them a runtime wants rounded.

Layers whose weights are stored (convolutions, linear layers) and products of two activations are what
INT8 kernels exist for; they want their inputs on a grid. Some runtimes want outputs of convolutions, and
sums or pools between them, on a grid too: a ``Profile`` says so. Operations that only move values share the
range of what they move.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from karui.graph.ranges.table import S8, U8, Grid
from karui.graph.trace import ROOT, argument, module_of, op_name, packet
from karui.numerics import Numerics

aten = torch.ops.aten
CONVS = (aten.conv1d, aten.conv2d, aten.conv3d)
TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
LAYERS = (*CONVS, *TRANSPOSED, aten.linear)
PRODUCTS = (aten.matmul, aten.bmm, aten.mm)
SUMS = (aten.add, aten.add_)
SCALINGS = (aten.mul, aten.mul_)
POOLS = (aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.mean)
CONCATENATION = (aten.cat,)
BETWEEN = (*SUMS, *SCALINGS, *POOLS, *CONCATENATION)
CLAMPS = (aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_, aten.relu6, aten.clamp)  # joined with layers
MOVES = (
    aten.view, aten.reshape, aten.flatten, aten.unflatten, aten.transpose, aten.permute, aten.t,
    aten.contiguous, aten.clone, aten.unsqueeze, aten.squeeze, aten.expand, aten.slice, aten.select,
    aten.dropout, aten.alias, aten.detach, aten.repeat, aten.pixel_shuffle, aten.pixel_unshuffle,
    aten.channel_shuffle, aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.upsample_nearest2d,
    aten.feature_dropout,
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """How a runtime likes its quantized model.

    activations, weights: grids. outputs: layers whose results it wants on a grid, whoever reads them;
    clamped: also those of layers that a clamp follows; answers: also those that the program answers.
    between: operations it can compute on integers, when all they read is on a grid. products: whether it
    multiplies two activations in INT8. bias: "int32" where it wants it so, else "float". per_channel: a scale
    of each output of a weight, or one. moved: whether a tensor that was only moved is put on its grid again,
    or the runtime carries integers along by itself. unread: whether operations between are computed on
    integers also where nothing reads them so; matrices: or else at least the results of linear layers on
    matrices that they read are on a grid.
    """

    activations: Grid = U8
    weights: Grid = S8
    outputs: tuple[Any, ...] = ()
    between: tuple[Any, ...] = ()
    products: bool = True
    bias: str = "float"
    per_channel: bool = True
    clamped: bool = False
    moved: bool = True
    unread: bool = True
    matrices: bool = False
    answers: bool = False

    def grid_of(self, role: str) -> Grid:
        return self.weights if role == "weight" else self.activations


def keys(graph: GraphModule) -> dict[Node, str]:
    """The table's key of every computed tensor and input."""
    found: dict[Node, str] = {}
    count: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op not in ("call_function", "placeholder"):
            continue
        input_ = node.op == "placeholder"
        key = f"input:{node.target}" if input_ else f"{module_of(node)}:{op_name(node)}"
        again = count.get(key, 0)
        count[key] = again + 1
        found[node] = f"{key}#{again}" if again else key
    return found


def layers(graph: GraphModule) -> Iterator[Node]:
    """Convolutions and linear layers whose weight is stored."""
    for node in graph.graph.nodes:
        if packet(node) in LAYERS and weight_path(node):
            yield node


def weight_path(node: Node) -> str:
    """The path of the layer's stored weight in the user's model; empty where it is computed."""
    weight = node.args[1] if len(node.args) > 1 else None
    return (
        str(weight.target).removeprefix(ROOT) if isinstance(weight, Node) and weight.op == "get_attr" else ""
    )


def layer_of(path: str) -> str:
    """What the layer of a weight is called: its module, or its weight where the module has another one."""
    return path.removesuffix(".weight")


def weight_axis(node: Node) -> int:
    """The axis of the outputs."""
    return 1 if packet(node) in TRANSPOSED else 0


def is_float(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def root(node: Node) -> Node:
    """The tensor whose values ``node`` only moves."""
    while packet(node) in MOVES and is_float(node.args[0]):
        node = node.args[0]  # type: ignore[assignment]
    return node


def closing(node: Node) -> Node:
    """Where the kernel of a layer ends: at the clamp that alone reads it, if there is one."""
    users = list(node.users)
    return users[0] if len(users) == 1 and packet(users[0]) in CLAMPS else node


def readings(node: Node) -> list[Node]:
    """The activations that an operation multiplies, adds or joins."""
    if packet(node) in LAYERS:
        parts: Any = node.args[:1]
    elif packet(node) in CONCATENATION:
        parts = node.args[0]
    else:
        parts = node.args[: 1 if packet(node) in POOLS else 2]
    return [part for part in parts if is_float(part) and part.op != "get_attr"]


def observed(graph: GraphModule) -> set[Node]:
    """Every activation that any profile could want on a grid."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        if packet(node) in (*LAYERS, *PRODUCTS, *BETWEEN) and is_float(node):
            found |= {root(part) for part in readings(node)} | {closing(node)}
    return {node for node in found if node.op != "get_attr"}


def in_int8(graph: GraphModule, profile: Profile, numerics: Numerics) -> list[Node]:
    """Layers and products that are to run in INT8: those that no rule keeps in float."""
    kinds = (*LAYERS, *PRODUCTS) if profile.products else LAYERS
    found = []
    for node in graph.graph.nodes:
        if (
            packet(node) not in kinds
            or not is_float(node)
            or not numerics.of(module_of(node)).startswith("int8")
        ):
            continue
        if packet(node) in LAYERS and not weight_path(node):
            continue
        if packet(node) in PRODUCTS and len(readings(node)) < 2:
            continue
        found.append(node)
    return found


def rounded(graph: GraphModule, profile: Profile, numerics: Numerics) -> dict[Node, Node]:
    """The activations to put on a grid, and for each the tensor whose range it takes."""
    chosen: dict[Node, Node] = {}
    for node in in_int8(graph, profile, numerics):
        for part in readings(node):
            choose(part, chosen, profile)
        if wants_output(node, profile):
            choose(closing(node), chosen, profile)
    read = read_on_a_grid(graph, chosen, profile)
    for node in graph.graph.nodes:
        if packet(node) in profile.between and is_float(node) and joins(node, chosen, numerics):
            for part in between(node, read, profile):
                choose(part, chosen, profile)
    return chosen


def between(node: Node, read: Collection[Node], profile: Profile) -> list[Node]:
    """What an operation between layers wants on a grid: all that it reads and gives, or a part of that."""
    if profile.unread or closing(node) in read:
        return [*readings(node), *([] if is_answer(closing(node)) else [closing(node)])]
    return [part for part in readings(node) if profile.matrices and multiplies_matrices(part)]


def multiplies_matrices(node: Node) -> bool:
    """Whether it is what a linear layer gives for rows of features, with no other axis; moved or not."""
    source = root(node)
    return packet(source) is aten.linear and source.meta["val"].ndim == 2


def read_on_a_grid(graph: GraphModule, chosen: Collection[Node], profile: Profile) -> set[Node]:
    """What is chosen, and what only moves, clamps and operations between layers stand before that."""
    passing, found = (*profile.between, *MOVES, *CLAMPS), set(chosen)
    for node in reversed(graph.graph.nodes):
        if any(user in found and packet(user) in passing for user in node.users):
            found.add(node)
    return found


def choose(node: Node, chosen: dict[Node, Node], profile: Profile) -> None:
    """Add what ``node`` is moved from and, where the runtime wants so, every move down to it."""
    source = root(node)
    while profile.moved and node is not source:
        chosen[node] = source
        node = node.args[0]  # type: ignore[assignment]
    chosen[source] = source


def wants_output(node: Node, profile: Profile) -> bool:
    end = closing(node)
    wanted = packet(node) in profile.outputs or (profile.clamped and end is not node)
    return wanted and (profile.answers or not is_answer(end))


def joins(node: Node, chosen: Mapping[Node, Node], numerics: Numerics) -> bool:
    """Whether an operation between layers is computed on integers: what it reads is or comes from such."""
    parts = readings(node)
    many = 1 if packet(node) in POOLS else 2
    return (
        numerics.of(module_of(node)).startswith("int8")
        and len(parts) >= many
        and all(part in chosen or root(part) in chosen or comes_from_layer(part, numerics) for part in parts)
    )


def comes_from_layer(node: Node, numerics: Numerics) -> bool:
    """Whether it is what a layer or product gives that no rule keeps in float."""
    start = root(node)
    inner = start.args[0] if packet(start) in CLAMPS else start
    if not isinstance(inner, Node) or packet(inner) not in (*LAYERS, *PRODUCTS):
        return False
    return numerics.of(module_of(inner)).startswith("int8")


def is_answer(node: Node) -> bool:
    """Whether nothing but the program's output reads it, moved or not."""
    return all(user.op == "output" or (packet(user) in MOVES and is_answer(user)) for user in node.users)


def bias_of(node: Node) -> Node | None:
    bias = argument(node, 2, "bias")
    return bias if isinstance(bias, Node) and bias.op == "get_attr" else None
