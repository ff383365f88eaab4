"""Batch norms of a captured program, folded into the layers before them.

In eval mode a norm multiplies and shifts each channel by constants, and so does the layer before it
(Jacob et al. 2018, arXiv:1712.05877, section 3.2). What the weight is multiplied by is told, so that ranges
of the weight can follow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from karui.graph.consumers import tensor_at
from karui.graph.ranges.places import CONVS
from karui.graph.trace import argument, packet

aten = torch.ops.aten


def fold_norms(graph: GraphModule) -> dict[str, Tensor]:
    """Fold every norm that follows a convolution or a linear layer of its own, in place.

    Gives the factors (outputs,) of each weight that changed, by its path in the graph.
    """
    factors: dict[str, Tensor] = {}
    for node in list(graph.graph.nodes):
        if packet(node) is aten.batch_norm and not argument(node, 5, "training") and foldable(node):
            factors |= fold(graph, node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return factors


def foldable(norm: Node) -> bool:
    layer = norm.args[0]
    if not isinstance(layer, Node) or packet(layer) not in (*CONVS, aten.linear) or len(layer.users) > 1:
        return False
    if packet(layer) is aten.linear and layer.meta["val"].ndim > 2:
        return False  # its features are not the axis that is normalised
    stored = [part for part in (layer.args[1], argument(layer, 2, "bias")) if part is not None]
    return all(is_own(part) for part in stored) and all(
        part is None or is_stored(part) for part in norm.args[1:5]
    )


def is_stored(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "get_attr"


def is_own(node: Any) -> bool:
    """Whether a stored tensor is read once, under one name."""
    if not is_stored(node):
        return False
    readers = [other for other in node.graph.nodes if other.op == "get_attr" and other.target == node.target]
    return len(readers) == 1 and len(node.users) == 1


def fold(graph: GraphModule, norm: Node) -> dict[str, Tensor]:
    layer: Any = norm.args[0]
    parts: Any = norm.args[1:5]
    gamma, beta, mean, var = (
        None if part is None else tensor_at(graph, part.target).detach().double() for part in parts
    )
    assert mean is not None and var is not None
    factor = (var + argument(norm, 7, "eps")).rsqrt()
    if gamma is not None:
        factor = factor * gamma
    shift = -mean * factor + (0.0 if beta is None else beta)
    path = layer.args[1].target
    weight = tensor_at(graph, path).detach()
    scaled = weight.double() * factor.reshape([-1] + [1] * (weight.ndim - 1))
    bias = argument(layer, 2, "bias")
    if bias is not None:
        shift = shift + tensor_at(graph, bias.target).detach().double() * factor
    put(graph, path, scaled.to(weight.dtype))
    with graph.graph.inserting_before(layer):
        name = put(graph, f"{path.rpartition('.')[0]}.bias", shift.to(weight.dtype))
        stored = graph.graph.get_attr(name)
    stored.meta["val"] = norm.meta["val"].new_empty(len(shift))
    rest = dict(layer.kwargs)
    rest.pop("bias", None)
    layer.args, layer.kwargs = (*layer.args[:2], stored, *layer.args[3:]), rest
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)
    return {path: factor.float()}


def put(graph: GraphModule, path: str, tensor: Tensor) -> str:
    """Store ``tensor`` under ``path``, whose owner is made where there is none; gives the path."""
    owner: Any = graph
    *parts, leaf = path.split(".")
    for part in parts:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner._modules[part]
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters.pop(leaf, None)
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return path
