"""How much each layer's rounding alone disturbs the answers: signal to quantization noise, in decibels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from karui.graph.fake_quant import fake_quant
from karui.graph.program import flat
from karui.graph.ranges.insert import grid_for, known
from karui.graph.ranges.places import (
    LAYERS,
    Profile,
    closing,
    in_int8,
    keys,
    readings,
    root,
    wants_output,
    weight_path,
)
from karui.graph.ranges.table import Range, Table
from karui.graph.trace import module_of, packet
from karui.numerics import Numerics

CEILING_DB = 120.0  # of what disturbs nothing


def sensitivity(
    graph: GraphModule, table: Table, profile: Profile, inputs: tuple[Tensor, ...]
) -> dict[str, float]:
    """Decibels by module path, of the modules whose layers or products could run in INT8.

    graph: in float. inputs: a batch. One pass for every module.
    """
    layers: dict[str, list[Node]] = {}
    for node in in_int8(graph, profile, Numerics("int8")):
        layers.setdefault(module_of(node), []).append(node)
    names = keys(graph)
    with torch.no_grad():
        plain = flat(graph(*inputs))
        found = {}
        for path, nodes in layers.items():
            noisy = Alone(graph, nodes, names, table, profile).run(*inputs)
            found[path] = round(ratio_db(plain, flat(noisy)), 2)
    return found


def ratio_db(signal: Sequence[Tensor], noisy: Sequence[Tensor]) -> float:
    pairs = [(one, other) for one, other in zip(signal, noisy) if one.is_floating_point()]
    power = sum(float(one.double().square().sum()) for one, _ in pairs)
    noise = sum(float((one - other).double().square().sum()) for one, other in pairs)
    if noise <= 0 or power <= 0:
        return CEILING_DB
    return min(10 * math.log10(power / noise), CEILING_DB)


@final
class Alone(Interpreter):
    """Runs a graph in float, with some layers reading their inputs and weights rounded.

    Their results are rounded too, where the profile wants these on a grid.
    """

    def __init__(
        self,
        graph: GraphModule,
        chosen: Sequence[Node],
        names: Mapping[Node, str],
        table: Table,
        profile: Profile,
    ) -> None:
        Interpreter.__init__(self, graph)
        self.chosen, self.names, self.table, self.profile = set(chosen), names, table, profile
        self.ends = {closing(node) for node in chosen if wants_output(node, profile)}

    def run_node(self, n: Node) -> Any:
        found = self.computed(n)
        return self.rounded(found, self.names[n]) if n in self.ends else found

    def computed(self, n: Node) -> Any:
        if n not in self.chosen:
            return Interpreter.run_node(self, n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        values = list(args)
        for part in readings(n):
            at = n.args.index(part)
            values[at] = self.rounded(values[at], self.names[root(part)])
        if packet(n) in LAYERS:
            values[1] = self.rounded(values[1], weight_path(n))
        return n.target(*values, **kwargs)  # type: ignore[operator]

    def rounded(self, values: Tensor, key: str) -> Tensor:
        one: Range = known(self.table, key)
        grid = grid_for(one, self.profile, key)
        scale, zero, axis = one.rounding(grid)
        rounded: Tensor = fake_quant(values, scale, zero, grid.low, grid.high, axis)
        return rounded
