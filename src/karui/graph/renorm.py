"""Statistics of batch norms, estimated again on the model as it is now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional

from karui.graph.compensate import Held, damage
from karui.graph.consumers import tensor_at
from karui.graph.trace import packet

aten = torch.ops.aten


@final
class Observed(Interpreter):
    """Runs a graph with every batch norm in training mode, and sums up the statistics it sees."""

    def __init__(self, graph: GraphModule) -> None:
        Interpreter.__init__(self, graph)
        self.sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def run_node(self, n: Node) -> Any:
        if packet(n) is not aten.batch_norm:
            return Interpreter.run_node(self, n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        x, weight, bias = args[:3]
        axes = [axis for axis in range(x.ndim) if axis != 1]
        count = x.numel() // x.shape[1]
        known = self.sums.get(n.name, (torch.zeros(x.shape[1]), torch.zeros(x.shape[1]), 0))
        mean, variance = x.mean(axes), x.var(axes, unbiased=False)
        self.sums[n.name] = (known[0] + count * mean, known[1] + count * variance, known[2] + count)
        return functional.batch_norm(x, None, None, weight, bias, training=True, eps=args[7])


def reestimate(graph: GraphModule, data: Sequence[tuple[Tensor, ...]], held: Held) -> bool:
    """Keep new statistics if they bring the answers on ``held`` closer to the original's; True if so."""
    if not any(packet(node) is aten.batch_norm for node in graph.graph.nodes):
        return False
    before = damage(graph, held)
    kept = put_in(graph, observed(graph, data))
    if kept and damage(graph, held) < before:
        return True
    for path, tensor in kept.items():
        tensor_at(graph, path).data.copy_(tensor)
    return False


def observed(graph: GraphModule, data: Sequence[tuple[Tensor, ...]]) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Mean and variance of what each batch norm sees, by the name of its node."""
    seen = Observed(graph)
    with torch.no_grad():
        for inputs in data:
            if len(inputs[0]) > 1:
                seen.run(*inputs)
    return {name: (means / count, variances / count) for name, (means, variances, count) in seen.sums.items()}


def put_in(graph: GraphModule, found: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Store new statistics; gives the old ones by path."""
    kept: dict[str, Tensor] = {}
    for node in graph.graph.nodes:
        for part, value in zip(node.args[3:5], found.get(node.name, ())):
            if isinstance(part, Node):
                tensor = tensor_at(graph, str(part.target))
                kept[str(part.target)] = tensor.detach().clone()
                tensor.data.copy_(value)
    return kept
