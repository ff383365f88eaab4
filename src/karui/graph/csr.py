"""Linear layers whose weights are mostly zero, multiplied as compressed rows (CSR) where that is faster.

Whether it is depends on the zeros, the sizes, the rows of a batch and the machine: each layer is timed both
ways, in turns, on the inputs it really gets.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional

from karui.graph.consumers import tensor_at, values_at
from karui.graph.trace import argument, packet

LEAST_ZEROS = 0.5  # of a weight; below, compressed rows were never seen to be faster
TURNS = 15  # of both ways; the middle of their ratios counts
BLOCK_S = 2e-3  # a turn calls a layer as often as that takes
WORTH = 1.05  # times faster, so that noise alone moves nothing


@dataclass(frozen=True)
class Timed:
    """A linear layer by the path of its weight: its share of zeros, and how many times faster CSR is."""

    path: str
    zeros: float
    ratio: float

    @property
    def worth(self) -> bool:
        return self.ratio >= WORTH

    def __str__(self) -> str:
        return f"{self.path}: {self.zeros:.0%} zeros, {self.ratio:.2f}x"


def timed(graph: GraphModule, inputs: Sequence[Tensor]) -> list[Timed]:
    """Every linear layer with enough zeros, timed on what ``inputs``, one batch, become on their way."""
    layers = [node for node in graph.graph.nodes if sparse(graph, node)]
    values = values_at(graph, tuple(inputs), {source_of(node).name for node in layers}) if layers else {}
    return [measured(graph, node, values[source_of(node).name]) for node in layers]


def sparse(graph: GraphModule, node: Node) -> bool:
    path = weight_path(node) if packet(node) is torch.ops.aten.linear else None
    return path is not None and zeros_of(tensor_at(graph, path)) >= LEAST_ZEROS


def weight_path(node: Node) -> str | None:
    """Of the stored weight, in the graph; None where it is computed."""
    weight = node.args[1]
    return str(weight.target) if isinstance(weight, Node) and weight.op == "get_attr" else None


def zeros_of(weight: Tensor) -> float:
    return float((weight == 0).double().mean())


def source_of(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


@torch.inference_mode()
def measured(graph: GraphModule, node: Node, x: Tensor) -> Timed:
    path, bias = weight_path(node), bias_of(graph, node)
    assert path is not None
    weight = tensor_at(graph, path)
    rows = compressed(weight)
    ratios = in_turns(
        lambda: functional.linear(x, weight, bias),
        lambda: product(x, rows, bias),
    )
    return Timed(path, zeros_of(weight), ratios[len(ratios) // 2])


def bias_of(graph: GraphModule, node: Node) -> Tensor | None:
    bias = argument(node, 2, "bias")
    return None if bias is None else tensor_at(graph, str(bias.target))


def in_turns(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> list[float]:
    """How many times faster ``other`` is, sorted."""
    start = time.perf_counter()
    one(), other()
    calls = max(1, int(BLOCK_S / max(time.perf_counter() - start, 1e-9)))
    return sorted(spent(one, calls) / spent(other, calls) for _ in range(TURNS))


def spent(call: Callable[[], Tensor], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def compressed(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR tensors a beta
        return weight.detach().to_sparse_csr()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., n) times a CSR weight (outputs, n); torch wants the dense factor on the right, as columns."""
    columns = x.reshape(-1, x.shape[-1]).t()
    out = weight @ columns if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    return out.t().reshape(*x.shape[:-1], -1)


def put_in(graph: GraphModule, paths: Collection[str]) -> GraphModule:
    """The graph with these weights as CSR matrices, for inference only."""
    for number, node in enumerate(list(graph.graph.nodes)):
        path = weight_path(node) if packet(node) is torch.ops.aten.linear else None
        if path is None or path not in paths:
            continue
        name = f"csr_{number}"
        graph.register_buffer(name, compressed(tensor_at(graph, path)), persistent=False)
        with graph.graph.inserting_before(node):
            stored = graph.graph.get_attr(name)
            made = graph.graph.call_function(product, (node.args[0], stored, argument(node, 2, "bias")))
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
