"""The program with ``karui::fake_quant`` at every place that a runtime rounds: what it should compute."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.fx import GraphModule, Node

from karui.errors import Unsupported
from karui.graph import fake_quant as _operation  # registers the operation
from karui.graph.consumers import tensor_at
from karui.graph.fold import put
from karui.graph.ranges.places import LAYERS, Profile, bias_of, in_int8, keys, rounded, weight_path
from karui.graph.ranges.table import Grid, Range, Table, signed
from karui.graph.trace import packet
from karui.numerics import Numerics

assert _operation
OP = torch.ops.karui.fake_quant.default
LARGEST_BIAS = 2.0**30  # in integers; what is left of 32 bits is the sum's
HOME = "ranges"  # the submodule that holds scales and zero points


def insert(graph: GraphModule, table: Table, profile: Profile, numerics: Numerics) -> list[Node]:
    """Put ``fake_quant`` into ``graph``, in place; gives the layers and products that are to run in INT8."""
    names = keys(graph)
    chosen = in_int8(graph, profile, numerics)
    places = rounded(graph, profile, numerics)
    for number, node in enumerate(node for node in chosen if packet(node) in LAYERS):
        round_weight(graph, node, known(table, weight_path(node)), profile, f"w{number}")
    for number, (node, source) in enumerate(places.items()):
        one = known(table, names[source])
        quantized = after(graph, node, one, grid_for(one, profile, names[source]), f"x{number}")
        if profile.answers:
            answer(node, quantized)
    for node in chosen:
        if packet(node) in LAYERS:
            fit_bias(graph, node)
    graph.graph.lint()
    graph.recompile()
    return chosen


def known(table: Table, key: str) -> Range:
    if key not in table:
        raise Unsupported(f"the quantization table has no range for {key}", fix="calibrate this model again")
    return table[key]


def grid_for(one: Range, profile: Profile, key: str) -> Grid:
    """The runtime's grid, or one of fewer bits for a range that is meant so."""
    grid = profile.grid_of(one.role)
    if one.role == "weight":
        return grid if one.bits == 8 and not one.learned else narrower(grid, one, key)
    if one.bits != 8:
        raise Unsupported(f"{key} was given {one.bits} bits", why="the runtimes store activations in 8")
    return grid


def narrower(grid: Grid, one: Range, key: str) -> Grid:
    """A grid of the bits that a weight was rounded or trained for, if it lies inside of the runtime's."""
    own = signed(one.bits)
    if own.high > grid.high:
        raise Unsupported(
            f"{key} was rounded to {one.bits} bits",
            why=f"this CPU's kernels take whole numbers up to {grid.high} without saturating",
            fix=f"round or train it for {one.bits - 1} bits",
        )
    return own


def round_weight(graph: GraphModule, layer: Node, one: Range, profile: Profile, name: str) -> None:
    weight: Any = layer.args[1]
    if (same := rounded_already(weight)) is not None:
        layer.replace_input_with(weight, same)
        return
    grid = grid_for(one, profile, weight_path(layer))
    if not profile.per_channel and not one.learned:
        one = dataclasses.replace(one, low=one.low.amin(), high=one.high.amax(), axis=-1)
    with graph.graph.inserting_before(layer):
        node = call(graph, weight, one, grid, name)
    layer.replace_input_with(weight, node)


def rounded_already(weight: Node) -> Node | None:
    """A stored weight rounded for another layer that reads it."""
    return next((user for user in weight.users if user.target is OP), None)


def after(graph: GraphModule, node: Node, one: Range, grid: Grid, name: str) -> Node:
    before = last_input(graph) if node.op == "placeholder" else node
    with graph.graph.inserting_before(before.next):
        quantized = call(graph, node, one, grid, name)
    pass_rounded(node, quantized)
    return quantized


def pass_rounded(node: Node, quantized: Node) -> None:
    """Every reader of ``node`` reads it rounded, but the program's answer."""
    for reader in list(node.users):
        if reader is not quantized and reader.op != "output":
            reader.replace_input_with(node, quantized)


def answer(node: Node, quantized: Node) -> None:
    """The program's answer is the rounded one too."""
    for reader in list(node.users):
        if reader.op == "output":
            reader.replace_input_with(node, quantized)


def fit_bias(graph: GraphModule, layer: Node) -> None:
    """Widen the scales of outputs whose weights are so small that their bias would overflow 32 bits.

    Kernels store a bias on the scale of the products; where an output's weights are all zero, that is next to
    nothing. Such weights are zero on the wider scale too.
    """
    parts: Any = layer.args[:2]
    bias = bias_of(layer)
    if bias is None or not all(part.target is OP for part in parts):
        return
    step, scale = (tensor_at(graph, part.args[1].target) for part in parts)
    least = tensor_at(graph, str(bias.target)).detach().abs() / step / LARGEST_BIAS
    scale.data = torch.maximum(scale, least.reshape(-1, len(scale)).amax(0))  # groups may share scales


def last_input(graph: GraphModule) -> Node:
    inputs: list[Node] = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return inputs[-1]


def call(graph: GraphModule, node: Node, one: Range, grid: Grid, name: str) -> Node:
    scale, zero, axis = one.rounding(grid)
    stored = [
        graph.graph.get_attr(put(graph, f"{HOME}.{name}.{part}", value))
        for part, value in {"scale": scale, "zero_point": zero}.items()
    ]
    found = graph.graph.call_function(OP, (node, *stored, grid.low, grid.high, axis))
    found.meta = {key: node.meta[key] for key in ("val", "nn_module_stack") if key in node.meta}
    return found
