"""Attention written out as products, a scale and a softmax, so that its products can be rounded."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from karui.graph.trace import argument, packet

aten = torch.ops.aten


def write_out_attention(graph: GraphModule) -> None:
    """Replace every ``scaled_dot_product_attention`` without a causal mask and grouped heads, in place."""
    for node in list(graph.graph.nodes):
        if packet(node) is aten.scaled_dot_product_attention and is_plain(node):
            write_out(graph, node)
    graph.recompile()


def is_plain(node: Node) -> bool:
    """``is_causal``, ``enable_gqa`` and dropout are left alone."""
    return not (
        argument(node, 4, "dropout_p", 0.0)
        or argument(node, 5, "is_causal", False)
        or argument(node, 7, "enable_gqa", False)
    )


def write_out(graph: GraphModule, node: Any) -> None:
    query, key, value = node.args[:3]
    mask = argument(node, 3, "attn_mask")
    scale = argument(node, 6, "scale") or 1 / math.sqrt(query.meta["val"].shape[-1])
    with graph.graph.inserting_before(node):
        turned = called(graph, node, aten.transpose.int, key, -2, -1)
        scores = called(graph, node, aten.matmul.default, query, turned)
        scores = called(graph, node, aten.mul.Tensor, scores, scale)
        if mask is not None and mask.meta["val"].dtype == torch.bool:
            hidden = called(graph, node, aten.logical_not.default, mask)
            scores = called(graph, node, aten.masked_fill.Scalar, scores, hidden, -math.inf)
        elif mask is not None:
            scores = called(graph, node, aten.add.Tensor, scores, mask)
        shares = called(graph, node, aten.softmax.int, scores, -1)
        mixed = called(graph, node, aten.matmul.default, shares, value)
    node.replace_all_uses_with(mixed)
    graph.graph.erase_node(node)


def called(graph: GraphModule, like: Node, target: Any, *args: Any) -> Node:
    """A new operation in the module of ``like``, with its result as torch would give it."""
    new: Node = graph.graph.call_function(target, args)
    values = [part.meta["val"] if isinstance(part, Node) else part for part in args]
    new.meta = dict(like.meta) | {"val": target(*values)}
    return new
