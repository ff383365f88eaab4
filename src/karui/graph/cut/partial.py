"""Norms and softmaxes over what stays of the units that they look at together.

A cut through these is not exact by nature. What it has to answer is still well defined: the masked model,
with every statistic taken over the units that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from karui.graph.cut.shapes import Gone
from karui.graph.trace import argument, packet
from karui.graph.units import Units
from karui.graph.units.labels import Labels

aten = torch.ops.aten
Operation = Callable[..., Tensor]  # of the operand, what stays of it, and further tensors


@final
class OverWhatStays(nn.Module):
    """stays: broadcasts to the operand without its batch axis being counted; False where a unit is gone."""

    stays: Tensor

    def __init__(self, operation: Operation, stays: Tensor) -> None:
        nn.Module.__init__(self)
        self.operation = operation
        self.register_buffer("stays", stays)

    def forward(self, x: Tensor, *rest: Tensor | None) -> Tensor:
        return self.operation(x, self.stays, *rest)


@contextmanager
def over_what_stays(graph: GraphModule, units: Units, gone: Gone) -> Iterator[None]:
    """Within, the norms and softmaxes of ``graph``, a traced model or its twin, count only what stays."""
    before = []
    for node in list(graph.graph.nodes) if units.classes.inexact else []:
        made = partial_of(node)
        stays = None if made is None else staying(units.of(node.args[0]), gone)
        if made is None or stays is None:
            continue
        before.append((node, node.op, node.target, node.args, node.kwargs))
        name = f"over_what_stays_{node.name}"
        graph.add_submodule(name, OverWhatStays(made[0], stays))
        node.op, node.target, node.args, node.kwargs = "call_module", name, made[1], {}
    graph.recompile()
    try:
        yield
    finally:
        for node, op, target, args, kwargs in before:
            graph.delete_submodule(str(node.target))
            node.op, node.target, node.args, node.kwargs = op, target, args, kwargs
        graph.recompile()


def staying(labels: Any, gone: Gone) -> Tensor | None:
    """What stays of a value, over the axes along which units lie; None where nothing goes."""
    if not isinstance(labels, Labels):
        return None
    stays = torch.ones([1] * len(labels.shape), dtype=torch.bool)
    for plane in labels.planes:
        stays = stays & ~gone.at(plane)
    return None if bool(stays.all()) else stays


def partial_of(node: Node) -> tuple[Operation, tuple[Any, ...]] | None:
    """The operation over what stays and the tensors it takes."""
    kind = packet(node)
    if kind is aten.layer_norm:
        count, eps = len(argument(node, 1, "normalized_shape")), argument(node, 4, "eps", 1e-5)
        affine = (argument(node, 2, "weight"), argument(node, 3, "bias"))
        return layer_norm(count, eps), (node.args[0], *affine)
    if kind is aten.group_norm:
        groups, eps = argument(node, 1, "num_groups"), argument(node, 4, "eps", 1e-5)
        affine = (argument(node, 2, "weight"), argument(node, 3, "bias"))
        return group_norm(groups, eps), (node.args[0], *affine)
    if kind in (aten.softmax, aten.log_softmax):
        return softmax(argument(node, 1, "dim"), logs=kind is aten.log_softmax), (node.args[0],)
    return None


def normed(x: Tensor, stays: Tensor, axes: list[int], eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over what stays along ``axes``, and 0 elsewhere."""
    count = stays.sum(axes, keepdim=True).clamp(min=1)
    mean = torch.where(stays, x, 0.0).sum(axes, keepdim=True) / count
    centred = torch.where(stays, x - mean, 0.0)
    return centred * torch.rsqrt(centred.square().sum(axes, keepdim=True) / count + eps)


def layer_norm(count: int, eps: float) -> Operation:
    def run(x: Tensor, stays: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = normed(x, stays.expand(x.shape), list(range(x.ndim - count, x.ndim)), eps)
        return affine(y, weight, bias)

    return run


def group_norm(groups: int, eps: float) -> Operation:
    def run(x: Tensor, stays: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        table = (len(x), groups, -1)
        y = normed(x.reshape(table), stays.expand(x.shape).reshape(table), [2], eps).reshape(x.shape)
        each = (-1, *[1] * (x.ndim - 2))
        return affine(y, *(None if part is None else part.reshape(each) for part in (weight, bias)))

    return run


def affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def softmax(axis: int, *, logs: bool) -> Operation:
    def run(x: Tensor, stays: Tensor) -> Tensor:
        shown = x.masked_fill(~stays, float("-inf"))
        return torch.where(stays, shown.log_softmax(axis) if logs else shown.softmax(axis), 0.0)

    return run
