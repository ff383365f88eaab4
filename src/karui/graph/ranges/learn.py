"""Ranges that training learns: the grid of each tensor as parameters, and their places in unfolded graphs.

Batch norms stay alive in training, yet runtimes round what is left when they are folded away. Rounding the
raw weight of each output on a symmetric grid is rounding the folded one, as the factor of the norm multiplies
weight and grid alike; results of a layer are rounded behind its norm. So places are found in a folded twin
and carried over by the table's keys. Esser et al. 2020, arXiv:1902.08153; Bhalgat et al. 2020,
arXiv:2004.09576.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from karui.graph.fold import fold_norms
from karui.graph.ranges.insert import OP, last_input, pass_rounded, rounded_already
from karui.graph.ranges.places import LAYERS, Profile, in_int8, keys, rounded, weight_axis, weight_path
from karui.graph.ranges.table import Grid, Range
from karui.graph.trace import packet, twin_of
from karui.numerics import Numerics

aten = torch.ops.aten
LEAST = 0.01  # a scale stays at least this share of what calibration found: positive, whatever the optimizer
HOME = "steps"  # the submodule of a model in training that holds these


@final
class Step(nn.Module):
    """The grid of one tensor: scale ``size * unit`` and zero point ``origin + shift * span``.

    ``size`` (from 1) and ``shift`` (from 0) are learned. They are relative, so that one learning rate fits
    all of them; a symmetric grid has no ``shift`` to learn. Nor has a tensor that was never negative: a zero
    point off the grid's end would leave its ReLU to a kernel of its own, and the layer before that in float.
    """

    def __init__(self, key: str, one: Range, grid: Grid) -> None:
        nn.Module.__init__(self)
        self.key, self.grid = key, grid
        self.role, self.bits, self.shape = one.role, one.bits, one.low.shape
        scale, zero, self.axis = one.rounding(grid)
        self.span = float(grid.high - grid.low)
        self.size = nn.Parameter(torch.ones_like(scale))
        self.shift = nn.Parameter(
            torch.zeros_like(zero), requires_grad=not grid.symmetric and bool((one.low < 0).any())
        )
        self.unit, self.origin = nn.Buffer(scale), nn.Buffer(zero)

    def scale(self) -> Tensor:
        return self.size * self.unit

    def zero_point(self) -> Tensor:
        return self.origin + self.shift * self.span

    def project(self) -> None:
        """Back to positive scales and to zero points on the grid; ``data``, as graphs may still hold them."""
        self.size.data.clamp_(min=LEAST)
        ends = [(end - self.origin) / self.span for end in (self.grid.low, self.grid.high)]
        self.shift.data.clamp_(*ends)

    @torch.no_grad()
    def range(self) -> Range:
        self.project()
        scale, zero = self.scale().cpu(), self.zero_point().round().cpu()
        low, high = ((end - zero) * scale for end in (self.grid.low, self.grid.high))
        low, high = low.reshape(self.shape), high.reshape(self.shape)
        return Range(low, high, self.axis, self.bits, self.role, learned=True)


@dataclass(frozen=True)
class Places:
    """Where to round, by the keys of the graph with its norms.

    weights: layer -> path of its weight, and the axis of its outputs. values: computed tensor -> key of the
    range it takes. left: layers that stay in float.
    """

    weights: Mapping[str, tuple[str, int]]
    values: Mapping[str, str]
    left: tuple[str, ...] = ()


def places_of(graph: GraphModule, profile: Profile, numerics: Numerics) -> tuple[Places, GraphModule]:
    """Where a runtime rounds ``graph`` (of eval mode), as if its norms were folded; and that twin."""
    twin = twin_of(graph)
    fold_norms(twin)
    here = {node.name: node for node in graph.graph.nodes}
    names, folded = keys(graph), keys(twin)
    chosen = [here[node.name] for node in in_int8(twin, profile, numerics) if packet(node) in LAYERS]
    weights = {names[node]: (weight_path(node), weight_axis(node)) for node in chosen}
    values = {
        names[behind_norm(here[node.name], folded)]: folded[source]
        for node, source in rounded(twin, profile, numerics).items()
    }
    every = {weight_path(node) for node in graph.graph.nodes if packet(node) in LAYERS}
    left = every - {path for path, _ in weights.values()} - {""}
    return Places(weights, values, tuple(sorted(left))), twin


def behind_norm(node: Node, folded: Mapping[Node, str]) -> Node:
    """The norm after ``node`` that the twin no longer has, or ``node`` itself."""
    kept = {other.name for other in folded}
    gone = [user for user in node.users if packet(user) is aten.batch_norm and user.name not in kept]
    return gone[0] if gone else node


def put_in(graph: GraphModule, places: Places, steps: Mapping[str, Step]) -> None:
    """Round in ``graph``, in place, by the ``steps`` of the module that will run it, there by their names.

    Places that this graph does not have are left out: the eval graph may do what the other does not.
    """
    by_key = {key: node for node, key in keys(graph).items()}
    start = last_input(graph).next
    grids = {step.key: Rounder(start, f"{HOME}.{name}", step) for name, step in steps.items()}
    for key, (path, _) in places.weights.items():
        if key in by_key:
            grids[path].round_weight(by_key[key])
    for key, source in places.values.items():
        if key in by_key:
            grids[source].round_value(by_key[key])
    graph.recompile()


@final
class Rounder:
    """Puts one step into one graph; its scale and zero point are computed once a call, before ``start``."""

    def __init__(self, start: Node, home: str, step: Step) -> None:
        self.step, self.start, self.graph = step, start, start.graph
        with self.graph.inserting_before(start):
            self.scale = self.node(aten.mul.Tensor, self.stored(f"{home}.size"), self.stored(f"{home}.unit"))
            self.zero = self.stored(f"{home}.origin")
            if not step.grid.symmetric:
                moved = self.node(aten.mul.Tensor, self.stored(f"{home}.shift"), step.span)
                self.zero = self.node(aten.add.Tensor, self.zero, moved)

    def stored(self, path: str) -> Node:
        """``graph.get_attr`` would ask the graph's own module, which is not the one that will run it."""
        return self.graph.create_node("get_attr", path)

    def node(self, operation: Any, *arguments: Any) -> Node:
        return self.graph.call_function(operation, arguments)

    def rounded(self, node: Node) -> Node:
        grid = self.step.grid
        return self.node(OP, node, self.scale, self.zero, grid.low, grid.high, self.step.axis)

    def round_weight(self, layer: Node) -> None:
        weight: Any = layer.args[1]
        with self.graph.inserting_before(layer):
            layer.replace_input_with(weight, rounded_already(weight) or self.rounded(weight))

    def round_value(self, node: Node) -> None:
        with self.graph.inserting_before(self.start if node.op == "placeholder" else node.next):
            quantized = self.rounded(node)
        pass_rounded(node, quantized)
