"""Histograms of a layer's weights and inputs, with the range that is kept: for the eye."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from karui.graph.consumers import tensor_at
from karui.graph.ranges.places import keys, layer_of, layers, readings, root, weight_path
from karui.graph.ranges.table import Table
from karui.graph.trace import Walk

BINS = 24
MOST = 48  # layers that are pictured, those first that come first


def pictures(graph: GraphModule, table: Table, inputs: tuple[Tensor, ...]) -> dict[str, dict[str, Any]]:
    """By layer: ``weights`` and ``inputs``, each a histogram with its ends; ``clip`` is the kept range."""
    names = keys(graph)
    wanted = {node: weight_path(node) for node in list(layers(graph))[:MOST]}
    found: dict[str, dict[str, Any]] = {}
    for node, args, _, _ in Walk(graph).steps(*inputs):
        if node in wanted:
            weight: Any = node.args[1]
            kept = table[names[root(readings(node)[0])]]
            found[layer_of(wanted[node])] = {
                "weights": histogram(tensor_at(graph, weight.target).detach()),
                "inputs": histogram(args[0]),
                "clip": [round(float(kept.low), 6), round(float(kept.high), 6)],
            }
    return found


def histogram(values: Tensor) -> list[Any]:
    """Lowest, highest, and how many lie in each of ``BINS`` equal parts between them."""
    low, high = (float(end) for end in values.aminmax())
    counts = torch.histc(values.float(), BINS, low, high) if high > low else torch.zeros(BINS)
    return [round(low, 6), round(high, 6), [int(count) for count in counts]]
