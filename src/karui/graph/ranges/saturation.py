"""What kernels without VNNI do to INT8: sums of two products are kept in 16 bits, and clipped there.

On x86 CPUs that have AVX2 but no VNNI, u8 times s8 is multiplied by ``vpmaddubsw``: two neighbouring
products are added in 16 bits with saturation. Activations up to 255 and weights up to 127 reach 64,770,
twice what fits; with 7-bit weights (63) nothing can be lost. Here the instruction is emulated, to tell in
which layers it would lose something, on any CPU.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from karui.graph.consumers import each, same, tensor_at
from karui.graph.fake_quant import integers
from karui.graph.ranges.insert import OP
from karui.graph.trace import packet

aten = torch.ops.aten
LIMITS = (-(2**15), 2**15 - 1)
CHUNK = 1 << 24  # pair sums held at once


@final
class Saturating(Interpreter):
    """Runs a graph with ``fake_quant`` as such kernels do; ``shares`` tells what they clipped.

    shares: of the pair sums of each layer, by the layer's node. Convolutions in two dimensions and linear
    layers are emulated; others are computed as they stand.
    """

    def __init__(self, graph: GraphModule) -> None:
        Interpreter.__init__(self, graph)
        self.graph_module = graph
        self.shares: dict[Node, float] = {}

    def run_node(self, n: Node) -> Any:
        layer: Any = n
        if packet(n) not in (aten.linear, aten.conv2d) or any(
            part.target is not OP for part in layer.args[:2]
        ):
            return Interpreter.run_node(self, n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x, weight = (self.integers(part, value) for part, value in zip(layer.args[:2], args))
        scale = self.stored(layer.args[0], 1) * self.stored(layer.args[1], 1)
        product = linear if packet(n) is aten.linear else convolved
        sums, self.shares[n] = product(x, weight, *args[3:])
        zero = self.stored(layer.args[0], 2).round()
        plain = n.target(torch.ones_like(x) * zero, weight, None, *args[3:])  # type: ignore[operator]
        shape = [-1] + [1] * (sums.ndim - 2) if packet(n) is aten.conv2d else [-1]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        return (sums - plain) * scale.reshape(shape) + (0.0 if bias is None else bias.reshape(shape))

    def integers(self, node: Any, value: Tensor) -> Tensor:
        """What the grid stores for ``value``, as floats."""
        return integers(value, self.stored(node, 1), self.stored(node, 2), *node.args[3:])

    def stored(self, node: Any, argument: int) -> Tensor:
        return tensor_at(self.graph_module, node.args[argument].target)


def linear(x: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    rows, share = clipped(x.reshape(-1, x.shape[-1]), weight)
    return rows.reshape(*x.shape[:-1], len(weight)), share


def convolved(
    x: Tensor, weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Tensor, float]:
    if isinstance(padding, str):
        ends = same(weight.shape[2:], each(dilation, 2), padding)
        x, padding = torch.nn.functional.pad(x, [end for pair in reversed(ends) for end in pair]), 0
    sizes = [tuple(each(part, 2)) for part in (stride, padding, dilation)]
    out = aten.conv2d(x[:1], weight, None, *sizes, groups).shape[2:]
    columns = torch.nn.functional.unfold(x, weight.shape[2:], sizes[2], sizes[1], sizes[0])
    parts = zip(columns.chunk(groups, 1), weight.flatten(1).chunk(groups, 0))
    done = [clipped(part.transpose(1, 2).flatten(0, 1), kernel) for part, kernel in parts]
    rows = torch.cat([sums for sums, _ in done], 1).reshape(len(x), -1, len(weight))
    return rows.transpose(1, 2).reshape(len(x), len(weight), *out), sum(share for _, share in done) / groups


def clipped(x: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """Products of rows (n, k) with (outputs, k) by pairs in 16 bits, and the share that was clipped."""
    if x.shape[1] % 2:
        x, weight = (torch.nn.functional.pad(part, (0, 1)) for part in (x, weight))
    pairs, kernels = x.reshape(len(x), -1, 2), weight.reshape(len(weight), -1, 2)
    sums, lost = [], 0
    step = max(1, CHUNK // max(kernels.shape[0] * kernels.shape[1], 1))
    for start in range(0, len(pairs), step):
        part = pairs[start : start + step]
        both = torch.einsum("npk,opk->nop", part, kernels)
        lost += int(((both < LIMITS[0]) | (both > LIMITS[1])).sum())
        sums.append(both.clamp(*LIMITS).sum(2))
    return torch.cat(sums), lost / (pairs.shape[0] * pairs.shape[1] * len(kernels))
