"""Labels that ride through the graph: for every element of a tensor, which unit it goes with.

A ``plane`` is an int64 tensor that broadcasts to its value's shape: axes along which it does not vary
have size 1. A weight has one plane for its outputs and one for its inputs; an element goes when its label
in any plane goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Plane = Tensor


@dataclass(frozen=True)
class Labels:
    """The planes of one value. An axis without a plane keeps its size."""

    shape: tuple[int, ...]
    planes: tuple[Plane, ...] = ()

    def fixed(self) -> set[int]:
        """Axes longer than 1 whose size nothing may change."""
        covered = {axis for plane in self.planes for axis in varying(plane)}
        return {axis for axis, size in enumerate(self.shape) if size > 1} - covered

    def along(self, axis: int) -> list[Plane]:
        return [plane for plane in self.planes if axis % len(self.shape) in varying(plane)]


def varying(plane: Plane) -> tuple[int, ...]:
    return tuple(axis for axis, size in enumerate(plane.shape) if size > 1)


def compact(full: Tensor) -> Plane | None:
    """The plane of a tensor of labels; None when nothing varies but one fixed or common label."""
    for axis in range(full.ndim):
        if full.shape[axis] > 1 and (full.stride(axis) == 0 or bool((full.narrow(axis, 0, 1) == full).all())):
            full = full.narrow(axis, 0, 1)
    return full.contiguous() if full.numel() > 1 else None


def compacted(shape: Iterable[int], fulls: Iterable[Tensor]) -> Labels:
    planes = (compact(full) for full in fulls)
    return Labels(tuple(shape), tuple(plane for plane in planes if plane is not None))


def moved(labels: Labels, shape: Iterable[int], move: Callable[[Tensor], Tensor]) -> Labels:
    """Labels after an operation that only moves elements: the same operation, on the labels."""
    return compacted(shape, [move(plane.expand(labels.shape)) for plane in labels.planes])


def without(labels: Labels, axis: int) -> Labels:
    """The planes that do not vary along ``axis``."""
    planes = tuple(plane for plane in labels.planes if axis % len(labels.shape) not in varying(plane))
    return Labels(labels.shape, planes)


def flat_rows(plane: Plane, row_axes: Iterable[int]) -> Tensor:
    """The plane as (rows, columns): one row for each position along ``row_axes``."""
    rows = [axis for axis in range(plane.ndim) if axis in set(row_axes)]
    columns = [axis for axis in range(plane.ndim) if axis not in rows]
    count = 1
    for axis in rows:
        count *= plane.shape[axis]
    return plane.permute([*rows, *columns]).reshape(count, -1)


def on_axis(ids: Tensor, axis: int, ndim: int) -> Plane:
    """A plane that varies along one axis only."""
    shape = [1] * ndim
    shape[axis] = len(ids)
    return torch.as_tensor(ids).reshape(shape)
