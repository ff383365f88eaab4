"""A matrix in few bits: each row in groups of neighbouring columns that share a scale and a zero point.

Group-wise grids: Dettmers & Zettlemoyer 2023, arXiv:2212.09720. Whole numbers are kept from 0 on, as
runtimes store them: a symmetric grid has its zero point in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from karui.graph.ranges import rounding
from karui.graph.ranges.table import TINY, Grid, Range, signed
from karui.graph.weights.options import Packing

SIZES = (128, 64, 32, 16)  # columns of a group that kernels know
ENDS = 32  # clipping ends that are tried for the least squared error


@dataclass(frozen=True)
class Stored:
    """A weight (rows, columns) as whole numbers from 0 to 2 ** bits - 1, in floats or in uint8.

    scale, zero: (rows, groups), float32 and whole numbers as floats. group: columns of each. path: in the
    user's model. rows are outputs of a layer, or entries of an embedding, which then is a ``table``.
    """

    path: str
    bits: int
    group: int
    whole: Tensor
    scale: Tensor
    zero: Tensor
    symmetric: bool
    table: bool = False

    def floats(self) -> Tensor:
        """The float32 values that these stand for."""
        rows, columns = self.whole.shape
        if columns % self.group == 0:
            parts = self.whole.reshape(rows, -1, self.group)
            return ((parts - self.zero.unsqueeze(2)) * self.scale.unsqueeze(2)).reshape(rows, columns)
        scale, zero = (spread(part, self.group, columns) for part in (self.scale, self.zero))
        return (self.whole - zero) * scale


@dataclass(frozen=True)
class Grids:
    """Scale and zero point of each group of a matrix, before its values are rounded."""

    bits: int
    group: int
    scale: Tensor
    zero: Tensor
    symmetric: bool

    @property
    def grid(self) -> Grid:
        return unsigned(self.bits, symmetric=self.symmetric)

    def round(self, weight: Tensor, path: str, H: Tensor | None = None) -> Stored:
        """To the nearest whole numbers, or with second moments H (columns, columns) of the inputs by GPTQ."""
        columns = weight.shape[1]
        scale, zero = (spread(part, self.group, columns) for part in (self.scale, self.zero))
        if H is None:
            whole = ((weight / scale).round() + zero).clamp(self.grid.low, self.grid.high)
        else:
            whole = rounding.gptq(weight.double(), scale.double(), self.grid, H, zero=zero.double()).float()
        return Stored(path, self.bits, self.group, whole, self.scale, self.zero, self.symmetric)


def spread(values: Tensor, group: int, columns: int) -> Tensor:
    """(rows, groups) as (rows, columns)."""
    return values.repeat_interleave(group, 1)[:, :columns]


def unsigned(bits: int, *, symmetric: bool) -> Grid:
    """Of so many bits; a symmetric one leaves its lowest number out."""
    return Grid(int(symmetric), 2**bits - 1, symmetric)


def middle(bits: int) -> int:
    """The zero point of a symmetric grid."""
    return int(2 ** (bits - 1))


def size_of(columns: int, wanted: int) -> int:
    """Columns of a group: the largest size up to ``wanted`` that divides ``columns``, else ``wanted``."""
    return next((size for size in SIZES if size <= wanted and columns % size == 0), wanted)


def grids(weight: Tensor, bits: int, group: int, packing: Packing) -> Grids:
    """Those of each group of ``weight`` (rows, columns), at its extremes or at the least squared error."""
    parts = grouped(weight, group)
    low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    if packing.ends == "minmax":
        return Grids(bits, group, *steps(low, high, bits, packing.symmetric), packing.symmetric)
    best = steps(low, high, bits, packing.symmetric)
    least = torch.full_like(low, torch.inf)
    for i in range(ENDS):
        share = 1 - 0.75 * i / ENDS
        tried = steps(low * share, high * share, bits, packing.symmetric)
        error = squared_error(parts, *tried, unsigned(bits, symmetric=packing.symmetric))
        best = tuple(torch.where(error < least, new, old) for new, old in zip(tried, best))  # type: ignore[assignment]
        least = torch.minimum(error, least)
    return Grids(bits, group, *best, packing.symmetric)


def grouped(weight: Tensor, group: int) -> Tensor:
    """(rows, groups, group), with zeros where the last group is not full."""
    missing = -weight.shape[1] % group
    return torch.nn.functional.pad(weight, (0, missing)).reshape(len(weight), -1, group)


def steps(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
    """Scale and zero point for values from ``low`` to ``high``; zero is always on the grid."""
    if symmetric:
        scale = torch.maximum(-low, high) / (middle(bits) - 1)
        return scale.clamp(min=TINY), torch.full_like(scale, middle(bits))
    scale = ((high - low) / (2**bits - 1)).clamp(min=TINY)
    return scale, (-low / scale).round().clamp(0, 2**bits - 1)


def squared_error(parts: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    s, z = scale.unsqueeze(2), zero.unsqueeze(2)
    whole = ((parts / s).round() + z).clamp(grid.low, grid.high)
    return (((whole - z) * s - parts) ** 2).sum(2)


def settled(weight: Tensor, one: Range, bits: int, group: int) -> Grids:
    """The grid that an earlier step has rounded each row of ``weight`` for, whatever the group."""
    scale = one.on(signed(one.bits))[0].reshape(-1, 1).expand(len(weight), -(-weight.shape[1] // group))
    return Grids(bits, group, scale.contiguous(), torch.full_like(scale, middle(bits)), symmetric=True)


def per_row(weight: Tensor) -> Grids:
    """One symmetric 8-bit scale for each row: what an embedding is stored with."""
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    return Grids(8, weight.shape[1], *steps(low, high, 8, symmetric=True), symmetric=True)


def nibbles(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Whole numbers below 16, two to a byte along the last axis, the first in the low half."""
    odd = array.shape[-1] % 2
    even = np.concatenate([array, np.zeros((*array.shape[:-1], 1), np.uint8)], -1) if odd else array
    packed: np.ndarray[Any, Any] = even[..., 0::2] | (even[..., 1::2] << 4)
    return packed
