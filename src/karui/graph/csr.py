"""Linear layers whose weights are mostly zero, multiplied as compressed rows where that is faster.

Rows of single weights (CSR), or of square blocks (BSR) where whole blocks are zero, which Intel's MKL
multiplies by vectors. Whether it pays depends on the zeros, the sizes, the rows of a batch and the machine:
each layer is timed in every form against the dense one, in turns, on the inputs it really gets.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional

from karui.graph.consumers import tensor_at, values_at
from karui.graph.trace import argument, packet

LEAST_ZEROS = 0.5  # of a weight, or of its blocks; below, compressed rows were never seen to be faster
BLOCKS = (4, 8, 16)  # sides of the blocks that are tried; 1 is CSR
TURNS = 15  # of both ways; the middle of their ratios counts
BLOCK_S = 2e-3  # a turn calls a layer as often as that takes
TILE = 256  # rows at a time
WORTH = 1.05  # times faster, so that noise alone moves nothing

Step = Callable[[Tensor], Tensor]  # columns to columns


@dataclass(frozen=True)
class Timed:
    """A linear layer by the path of its weight: its share of zeros, and how many times faster it is in blocks
    of this side.
    """

    path: str
    zeros: float
    block: int
    ratio: float

    @property
    def worth(self) -> bool:
        return self.ratio >= WORTH

    def __str__(self) -> str:
        form = f" in blocks of {self.block}x{self.block}" if self.block > 1 else ""
        return f"{self.path}: {self.zeros:.0%} zeros{form}, {self.ratio:.2f}x"


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


def forms(weight: Tensor) -> list[int]:
    """Sides of the blocks in which this weight may be stored; MKL alone has a product of blocks."""
    rows, columns = weight.shape
    fit = [n for n in BLOCKS if not (rows % n or columns % n) and mkl()]
    return [1, *(n for n in fit if zeros_of(block_sums(weight, n)) >= LEAST_ZEROS)]


def mkl() -> bool:
    return bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


def block_sums(weight: Tensor, n: int) -> Tensor:
    rows, columns = weight.shape
    return weight.detach().abs().reshape(rows // n, n, columns // n, n).sum((1, 3))


def source_of(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


@torch.inference_mode()
def measured(graph: GraphModule, node: Node, x: Tensor) -> Timed:
    """In its fastest form."""
    path, bias = weight_path(node), bias_of(graph, node)
    assert path is not None
    weight = tensor_at(graph, path)
    found = [(in_form(x, weight, bias, block), block) for block in forms(weight)]
    ratio, block = max(found)
    return Timed(path, zeros_of(weight), block, ratio)


def in_form(x: Tensor, weight: Tensor, bias: Tensor | None, block: int) -> float:
    """How many times faster than dense."""
    multiply = Products([functools.partial(product, compressed(weight, block), bias)])
    return in_turns(
        lambda: functional.linear(x, weight, bias),
        lambda: multiply(x),
    )


def bias_of(graph: GraphModule, node: Node) -> Tensor | None:
    bias = argument(node, 2, "bias")
    return None if bias is None else tensor_at(graph, str(bias.target))


def in_turns(one: Callable[[], object], other: Callable[[], object]) -> float:
    """How many times faster ``other`` is, in the middle of TURNS."""
    start = time.perf_counter()
    one(), other()
    calls = max(1, int(BLOCK_S / max(time.perf_counter() - start, 1e-9)))
    return sorted(spent(one, calls) / spent(other, calls) for _ in range(TURNS))[TURNS // 2]


def spent(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def compressed(weight: Tensor, block: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its compressed tensors a beta
        plain = weight.detach()
        return plain.to_sparse_csr() if block == 1 else plain.to_sparse_bsr((block, block))


def product(weight: Tensor, bias: Tensor | None, columns: Tensor) -> Tensor:
    """Compressed rows (outputs, n) times columns (n, rows), the order that torch wants: (outputs, rows)."""
    return weight @ columns if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)


class Products(nn.Module):
    """Products with compressed rows one after the other, and what happens to each value between them.

    A few rows of the batch at a time, which stay columns to the end: what lies between is then in the
    processor's cache. Others who use the memory slow whole batches down to half.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        nn.Module.__init__(self)
        self.steps = tuple(steps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., outputs), in the usual order of memory."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= TILE:
            found = self.of(rows).contiguous()
        else:
            found = torch.cat([self.of(part) for part in torch.split(rows, TILE)])
        return found.reshape(*x.shape[:-1], -1)

    def of(self, rows: Tensor) -> Tensor:
        columns = rows.t()
        for step in self.steps:
            columns = step(columns)
        return columns.t()


def put_in(graph: GraphModule, blocks: Mapping[str, int]) -> GraphModule:
    """The graph with these weights as compressed rows of blocks of these sides, for inference only."""
    for number, node in enumerate(list(graph.graph.nodes)):
        path = weight_path(node) if packet(node) is torch.ops.aten.linear else None
        if path is None or path not in blocks:
            continue
        before, source = since_products(graph, source_of(node))
        weight = compressed(tensor_at(graph, path), blocks[path])
        step = functools.partial(product, weight, bias_of(graph, node))
        graph.add_submodule(f"products_{number}", Products([*before, step]))
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.call_module(f"products_{number}", (source,)))
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def since_products(graph: GraphModule, node: Node) -> tuple[list[Step], Node]:
    """What happened to ``node`` since the last products, with them, if that was done to each value by itself
    and nobody else reads it; and what they started from.
    """
    steps: list[Step] = []
    start = node
    while len(node.users) == 1:
        if node.op == "call_module" and isinstance(made := graph.get_submodule(str(node.target)), Products):
            return [*made.steps, *reversed(steps)], node.all_input_nodes[0]
        if not by_value(node):
            break
        steps.append(functools.partial(repeated, node.target, node.args[1:], node.kwargs))
        node = node.all_input_nodes[0]
    return [], start


def by_value(node: Node) -> bool:
    """Whether each value of its first argument is changed by itself, and no other tensor is read."""
    rest = (*node.args[1:], *node.kwargs.values())
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return pointwise and isinstance(node.args[0], Node) and not any(isinstance(one, Node) for one in rest)


def repeated(operation: Any, rest: tuple[Any, ...], named: Mapping[str, Any], values: Tensor) -> Tensor:
    """What a node does, to other values."""
    found: Tensor = operation(values, *rest, **named)
    return found
