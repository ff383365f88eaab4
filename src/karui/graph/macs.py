"""Multiply-accumulates of a traced model with some of its units gone, from the labels alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from karui.graph.cut.shapes import Gone
from karui.graph.trace import packet
from karui.graph.units import CONVS, Units
from karui.graph.units.labels import Labels, varying

aten = torch.ops.aten
PRODUCTS = {aten.matmul, aten.bmm, aten.mm, aten.baddbmm, aten.addmm}


@dataclass(frozen=True)
class Product:
    """One operation: ``full`` times ``positions`` multiplications a sample while nothing is removed.

    tables: labels; the count shrinks with the share that stays of each.
    """

    name: str
    tables: tuple[Tensor, ...]
    full: int
    positions: float

    def count(self, gone: Gone) -> float:
        stays = self.full * self.positions
        for table in self.tables:
            stays *= float((~gone.at(table)).float().mean())
        return stays


def products(units: Units) -> list[Product]:
    """All operations that multiply, with what their size depends on."""
    rows = len(units.trace.example[0])
    return [
        one for node in units.trace.graph.graph.nodes if (one := product_at(units, node, rows)) is not None
    ]


def product_at(units: Units, node: Node, rows: int) -> Product | None:
    if node.op != "call_function" or not isinstance(units.of(node), Labels):
        return None
    target, out = packet(node), units.of(node)
    if target in CONVS or target is aten.linear:
        weight = units.of(node.args[1])
        if not isinstance(weight, Labels):
            return None
        transposed = "transpose" in str(target)
        image = units.of(node.args[0]) if transposed else out
        space = math.prod(image.shape[2:]) if target in CONVS else math.prod(out.shape[:-1]) / rows
        others = [] if target in CONVS else planes_beside(out, -1)
        return Product(node.name, (*weight.planes, *others), math.prod(weight.shape), space)
    if target in PRODUCTS or target is aten.scaled_dot_product_attention:
        return inner_product(units, node, rows)
    return None


def inner_product(units: Units, node: Node, rows: int) -> Product | None:
    """Of two activations."""
    first = 1 if packet(node) in (aten.baddbmm, aten.addmm) else 0
    one, other = (units.of(part) for part in node.args[first : first + 2])
    if not isinstance(one, Labels) or not isinstance(other, Labels):
        return None
    attention = packet(node) is aten.scaled_dot_product_attention
    columns = other.shape[-2] if attention else other.shape[-1]
    full = math.prod(one.shape) * columns / rows
    if attention:
        full += math.prod(one.shape[:-1]) * columns * units.of(node.args[2]).shape[-1] / rows
    return Product(node.name, one.planes, 1, full)


def planes_beside(labels: Labels, axis: int) -> list[Tensor]:
    axis %= len(labels.shape)
    return [plane for plane in labels.planes if axis not in varying(plane)]


def total(found: list[Product], gone: Gone) -> float:
    return sum(one.count(gone) for one in found)


def parameters(units: Units, gone: Gone) -> float:
    """Stored numbers that stay; shared tensors count once. Buffers count too."""
    seen: set[int] = set()
    count = 0.0
    for labels in units.weights.values():
        if id(labels) in seen:
            continue
        seen.add(id(labels))
        part = float(math.prod(labels.shape))
        for plane in labels.planes:
            part *= float((~gone.at(plane)).float().mean())
        count += part
    return count
