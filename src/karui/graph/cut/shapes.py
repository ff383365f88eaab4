"""What stays of a tensor when units go: per axis the kept positions, and where rows keep different ones."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from karui.errors import Unsupported
from karui.graph.units import Units
from karui.graph.units.labels import Labels, Plane, varying


@dataclass(frozen=True)
class Gone:
    """A set of removed classes, as a table over labels."""

    table: Tensor

    def at(self, plane: Plane) -> Tensor:
        """Which elements of a plane go."""
        return self.table[plane.clamp(min=0)] & (plane >= 0)


def gone_of(roots: Tensor, removed: Collection[int]) -> Gone:
    """``roots``: the class of every label."""
    chosen = torch.zeros(max(len(roots), 1), dtype=torch.bool)
    chosen[torch.tensor(sorted(removed), dtype=torch.int64)] = True
    return Gone(chosen[roots] if len(roots) else chosen)


@dataclass(frozen=True)
class Kept:
    """``keep[axis]``: which positions stay.

    rows: a table of what stays along the axis ``ragged``, where every row keeps equally many positions, but
    not the same ones.
    """

    shape: tuple[int, ...]
    keep: tuple[Tensor, ...]
    rows: Tensor | None = None
    ragged: int = -1

    @property
    def sizes(self) -> list[int]:
        sizes = [int(mask.sum()) for mask in self.keep]
        if self.rows is not None:
            sizes[self.ragged] = int(self.rows.sum(self.ragged).max())
        return sizes

    @property
    def changed(self) -> bool:
        return tuple(self.sizes) != self.shape

    def positions(self, axis: int) -> Tensor:
        """New position of each old one along ``axis``; -1 for those that go."""
        if axis == self.ragged and self.rows is not None:
            raise Unsupported("an index along an axis whose rows keep different positions")
        mask = self.keep[axis]
        return torch.where(mask, mask.cumsum(0) - 1, -1)

    def count(self, axis: int, stop: int) -> int:
        """How many of the first ``stop`` positions stay, where that is the same in all rows."""
        if axis != self.ragged or self.rows is None:
            return int(self.keep[axis][:stop].sum())
        counts = self.rows_left(self.rows).narrow(axis, 0, stop).sum(axis)
        if int(counts.min()) != int(counts.max()):
            raise Unsupported("rows would keep different numbers of a part's positions")
        return int(counts.max())

    def rows_left(self, rows: Tensor) -> Tensor:
        """The table without rows that go as a whole."""
        for axis, mask in enumerate(self.keep):
            if rows.shape[axis] > 1:
                rows = rows.index_select(axis, mask.nonzero().reshape(-1))
        return rows

    def take(self, tensor: Tensor) -> Tensor:
        """The kept part of ``tensor``."""
        for axis, mask in enumerate(self.keep):
            if not bool(mask.all()):
                tensor = tensor.index_select(axis, mask.nonzero().reshape(-1).to(tensor.device))
        if self.rows is None:
            return tensor
        rows = self.rows_left(self.rows)
        order = torch.argsort(~rows, dim=self.ragged, stable=True).narrow(
            self.ragged, 0, self.sizes[self.ragged]
        )
        sizes = list(tensor.shape)
        sizes[self.ragged] = order.shape[self.ragged]
        return tensor.gather(self.ragged, order.expand(sizes).to(tensor.device))


def kept(labels: Labels, gone: Gone) -> Kept:
    """Raises Unsupported when what stays is no rectangle."""
    keep = [torch.ones(size, dtype=torch.bool) for size in labels.shape]
    tables: list[Tensor] = []
    for plane in labels.planes:
        stays, axes = ~gone.at(plane), varying(plane)
        for axis in axes:
            others = [a for a in range(plane.ndim) if a != axis and plane.shape[a] > 1]
            keep[axis] &= (stays.amax(others) if others else stays).reshape(-1)
        if len(axes) > 1:
            tables.append(stays)
    if not all(bool(mask.any()) for mask in keep):
        raise Unsupported("nothing would be left of an axis")
    pairs = [(table, ragged_axis(table, keep)) for table in tables]
    ragged = [(table, axis) for table, axis in pairs if axis is not None]
    if len(ragged) > 1:
        raise Unsupported("two patterns of removal meet in one tensor")
    if not ragged:
        return Kept(labels.shape, tuple(keep))
    table, axis = ragged[0]
    return Kept(labels.shape, tuple(keep), table, axis)


def ragged_axis(table: Tensor, keep: list[Tensor]) -> int | None:
    """The axis along which rows keep different positions but equally many; None where all keep the same."""
    left = table
    for axis in range(table.ndim):
        if table.shape[axis] > 1:
            left = left.index_select(axis, keep[axis].nonzero().reshape(-1))
    if bool(left.all()):
        return None
    for axis in reversed(varying(left)):
        counts = left.sum(axis)
        if int(counts.min()) == int(counts.max()) > 0:
            return axis
    raise Unsupported("rows would keep different numbers of units")


def zero_out(graph: GraphModule, units: Units, gone: Gone) -> None:
    """Set every stored number of the removed units to zero, in place."""
    for path, labels in units.weights.items():
        tensor = operator.attrgetter(path)(graph)
        if tensor.is_floating_point():
            for mask in map(gone.at, labels.planes):
                if bool(mask.any()):
                    tensor.data.masked_fill_(mask, 0.0)
