"""Filling the quantization table: one streaming pass over calibration data, and the weights themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from karui.errors import Unsupported
from karui.graph.consumers import tensor_at
from karui.graph.ranges.observers import Observer, observer, per_channel
from karui.graph.ranges.places import keys, layers, observed, weight_axis, weight_path
from karui.graph.ranges.table import S8, U8, Range, Table
from karui.graph.trace import Walk

ROWS = 16  # samples held at once


def calibrate(
    graph: GraphModule,
    batches: Iterable[tuple[Tensor, ...]],
    name: str = "minmax",
    known: Table | None = None,
) -> Table:
    """Ranges of every tensor that a runtime could want on a grid; those ``known`` are taken over.

    batches: flat inputs. name: of the observer. Raises Unsupported where there is no data, or where it
    gives values that are not finite.
    """
    found = dict(known or {})
    names = keys(graph)
    wanted = {node: observer(name) for node in observed(graph) if names[node] not in found}
    watch(graph, batches, wanted, names)
    for node, one in wanted.items():
        low, high = one.range(U8)
        found[names[node]] = Range(low, high)
    for node in layers(graph):
        path = weight_path(node)
        if path not in found:
            found[path] = weight_range(tensor_at(graph, str(node.args[1].target)), weight_axis(node), name)  # type: ignore[union-attr]
    return Table(found, name)


def weight_range(weight: Tensor, axis: int, name: str) -> Range:
    low, high = per_channel(weight, axis, name, S8)
    return Range(low, high, axis, role="weight")


def watch(
    graph: GraphModule,
    batches: Iterable[tuple[Tensor, ...]],
    wanted: Mapping[Node, Observer],
    names: Mapping[Node, str],
) -> None:
    seen = 0
    walk = Walk(graph)
    for inputs in batches:
        for node, _, _, value in walk.steps(*inputs):
            if node in wanted and value.numel():
                wanted[node].see(checked(value, names[node]))
        seen += 1
    if wanted and not seen:
        raise Unsupported("there is no calibration data", fix="give the task a calibrate split")


def checked(value: Tensor, key: str) -> Tensor:
    if not bool(torch.isfinite(value).all()):
        raise Unsupported(
            f"{key} gives values that are not finite",
            why="the range of such a tensor is unknown",
            fix="mask with a large finite number instead of infinity, or keep the layer in fp32",
        )
    return value
