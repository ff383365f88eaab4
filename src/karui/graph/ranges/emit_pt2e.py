"""A program with ``karui::fake_quant`` in the operations that torch's own lowerings know (PT2E).

Weights are stored as integers behind a dequantization; activations pass a pair. Inductor and ExecuTorch read
this form. LiteRT's converter wants weights in float behind a pair of their own, and folds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from karui.graph.consumers import tensor_at
from karui.graph.fake_quant import fake_quant, integers
from karui.graph.fold import put
from karui.graph.inductor_int8 import operations
from karui.graph.program import delete_unread
from karui.graph.ranges.insert import HOME, OP
from karui.graph.trace import packet

aten = torch.ops.aten


def emit(graph: GraphModule) -> None:
    """Rewrite every ``fake_quant`` of ``graph``, in place, as Inductor wants it."""
    widen_images(graph)
    flatten_linears(graph)
    rewrite(graph)


def rewrite(graph: GraphModule, *, folded: bool = True) -> None:
    """Every ``fake_quant`` of ``graph``, in place. folded: whether weights are stored as integers."""
    operations()
    for node in list(graph.graph.nodes):
        if node.target is not OP:
            continue
        if node.args[0].op == "get_attr":
            store(graph, node, folded=folded)
        else:
            pair(graph, node)
    graph.graph.eliminate_dead_code()
    delete_unread(graph)
    graph.recompile()


def parameters(graph: GraphModule, node: Any) -> tuple[Tensor, Tensor]:
    scale, zero = (tensor_at(graph, part.target).detach() for part in node.args[1:3])
    return scale, zero.round()


def pair(graph: GraphModule, node: Any) -> None:
    """An activation: to integers and back."""
    known = torch.ops.quantized_decomposed
    scale, zero = parameters(graph, node)
    low, high = node.args[3:5]
    steps = (float(scale), int(zero), low, high, kind(low))
    with graph.graph.inserting_before(node):
        whole = graph.graph.call_function(known.quantize_per_tensor.default, (node.args[0], *steps))
        back = graph.graph.call_function(known.dequantize_per_tensor.default, (whole, *steps))
    replace(graph, node, whole, back)


def store(graph: GraphModule, node: Any, *, folded: bool) -> None:
    """A weight: integers and back, or the floats that they stand for, to integers and back."""
    known = torch.ops.quantized_decomposed
    scale, zero = parameters(graph, node)
    low, high, axis = node.args[3:6]
    weight = tensor_at(graph, node.args[0].target).detach()
    home = f"{HOME}.{str(node.args[0].target).replace('.', '_')}"
    with graph.graph.inserting_before(node):
        steps = grid(graph, home, scale, zero, node)
        if folded:
            kept = integers(weight, scale, zero, low, high, axis).to(kind(low))
            whole = graph.graph.get_attr(put(graph, f"{home}.integers", kept))
        else:
            floats = put(graph, f"{home}.floats", fake_quant(weight, scale, zero, low, high, axis))
            there = known.quantize_per_tensor if axis < 0 else known.quantize_per_channel
            whole = graph.graph.call_function(there.default, (graph.graph.get_attr(floats), *steps))
        back = known.dequantize_per_tensor if axis < 0 else known.dequantize_per_channel
        replace(graph, node, whole, graph.graph.call_function(back.default, (whole, *steps)))


def grid(graph: GraphModule, home: str, scale: Tensor, zero: Tensor, node: Any) -> tuple[Any, ...]:
    """What the operations take behind their tensor; scales of many outputs are stored under ``home``."""
    low, high, axis = node.args[3:6]
    if axis < 0:
        return (float(scale), int(zero), low, high, kind(low))
    kept = {"scales": scale, "zeros": zero.long()}
    nodes = [graph.graph.get_attr(put(graph, f"{home}.{name}", value)) for name, value in kept.items()]
    return (*nodes, axis, low, high, kind(low))


def kind(low: int) -> torch.dtype:
    return torch.uint8 if low >= 0 else torch.int8


def replace(graph: GraphModule, node: Node, whole: Node, back: Node) -> None:
    whole.meta = {key: value for key, value in node.meta.items() if key == "nn_module_stack"}
    back.meta = dict(node.meta)
    node.replace_all_uses_with(back)
    graph.graph.erase_node(node)


def flatten_linears(graph: GraphModule) -> None:
    """Let every linear layer read rows: Inductor knows no INT8 kernel of more than two axes by itself.

    A layer whose input has several axes of unknown length stays as it is.
    """
    for node in list(graph.graph.nodes):
        if packet(node) is aten.linear and node.meta["val"].ndim > 2:
            shape = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
            if shape.count(-1) <= 1:
                flatten(graph, node, shape)
    graph.recompile()


def flatten(graph: GraphModule, node: Any, shape: list[int]) -> None:
    """``shape``: of the layer's outputs, -1 for the axis of unknown length."""
    source = node.args[0]
    columns = source.meta["val"].shape[-1]
    with graph.graph.inserting_before(node):
        rows = graph.graph.call_function(aten.reshape.default, (source, [-1, columns]))
        rows.meta = dict(source.meta) | {"val": source.meta["val"].reshape(-1, columns)}
        if source.target is OP:  # once more, which changes no number: a kernel wants it right before it
            again = graph.graph.call_function(OP, (rows, *source.args[1:]))
            again.meta, rows = dict(rows.meta), again
    node.args = (rows, *node.args[1:])
    with graph.graph.inserting_before(node.next):
        back = graph.graph.call_function(aten.reshape.default, (node, shape))
    back.meta = dict(node.meta)
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    node.meta["val"] = node.meta["val"].reshape(-1, shape[-1])


def widen_images(graph: GraphModule) -> None:
    """Give every image of one channel a second one of zeros.

    The strides of a one-channel image are ambiguous, and Inductor's INT8 convolution of torch 2.13 and 2.14
    reads a dynamic batch of them along the wrong ones, silently.
    """
    for node in list(graph.graph.nodes):
        if packet(node) is aten.conv2d and node.args[0].meta["val"].shape[1] == 1:
            widen(graph, node)
    graph.recompile()


def widen(graph: GraphModule, node: Any) -> None:
    image, weight = node.args[:2]
    before = image.args[0] if image.target is OP else image
    stored = weight.args[0] if weight.target is OP else weight
    if stored.op != "get_attr":
        return
    path = f"{HOME}.{stored.target.replace('.', '_')}_widened"
    wide = torch.nn.functional.pad(tensor_at(graph, stored.target).detach(), (0, 0, 0, 0, 0, 1))
    with graph.graph.inserting_before(node):
        padded: Any = graph.graph.call_function(aten.constant_pad_nd.default, (before, [0, 0, 0, 0, 0, 1]))
        kernel: Any = graph.graph.get_attr(put(graph, path, wide))
        if image.target is OP:
            padded = graph.graph.call_function(OP, (padded, *image.args[1:]))
        if weight.target is OP:
            kernel = graph.graph.call_function(OP, (kernel, *weight.args[1:]))
    node.args = (padded, kernel, *node.args[2:])
