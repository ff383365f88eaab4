"""The quantization table: the range of every tensor by its name, whatever runtime will read it.

A weight's key is its path (``block.0.conv.weight``); that of a computed tensor is the path of the module
that computes it and the operation (``block.0:add``, ``block.0.conv:conv2d``; ``:relu#1`` for the second of
a kind). A range is in float: each runtime makes of it the integers it likes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from karui.artifact import RANGES, RANGES_TENSORS
from karui.errors import Tampered, UsageError

SCHEMA = "karui.ranges/1"
TINY = 1e-12


@dataclass(frozen=True)
class Grid:
    """Integers from ``low`` to ``high``; a symmetric one has its zero point at 0."""

    low: int
    high: int
    symmetric: bool


U8 = Grid(0, 255, symmetric=False)
S8_AFFINE = Grid(-128, 127, symmetric=False)
S8 = Grid(-127, 127, symmetric=True)
S8_WHOLE = Grid(-128, 127, symmetric=True)
S7 = Grid(-63, 63, symmetric=True)  # sums of two products with u8 stay inside of 16 bits


def signed(bits: int) -> Grid:
    """The symmetric grid of so many bits, without its lowest integer."""
    top = 2 ** (bits - 1) - 1
    return Grid(-top, top, symmetric=True)


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``, each of shape () or (n,) for the n indices along ``axis``.

    bits: of the grid it is meant for. learned: by training or rounding, and not to be widened or rounded
    anew: the grid of a runtime must then have as many bits.
    """

    low: Tensor
    high: Tensor
    axis: int = -1
    bits: int = 8
    role: Literal["weight", "activation"] = "activation"
    learned: bool = False

    def on(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Scale and zero point, in float32, each of the shape of ``low``. Zero is always on the grid."""
        low, high = self.low.clamp(max=0).double(), self.high.clamp(min=0).double()
        if grid.symmetric:
            scale = torch.maximum(-low, high) / grid.high
            return scale.clamp(min=TINY).float(), torch.zeros_like(scale).float()
        scale = ((high - low) / (grid.high - grid.low)).clamp(min=TINY).float()
        zero = (grid.low - low / scale).round().clamp(grid.low, grid.high)
        return scale, zero.float()

    def rounding(self, grid: Grid) -> tuple[Tensor, Tensor, int]:
        """Scale, zero point and axis as ``fake_quant`` takes them: of one number, or one for each index."""
        scale, zero = self.on(grid)
        return scale.reshape(-1), zero.reshape(-1), self.axis if scale.ndim else -1

    def times(self, factors: Tensor) -> Range:
        """The range of a weight whose indices along the axis are multiplied by ``factors``."""
        ends = torch.stack([self.low * factors, self.high * factors])
        return dataclasses.replace(self, low=ends.amin(0), high=ends.amax(0))


@dataclass(frozen=True)
class Table(Mapping[str, Range]):
    """Ranges by key; ``observer`` tells how those that are not learned were found."""

    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    observer: str = ""

    def __getitem__(self, key: str) -> Range:
        return self.ranges[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ranges)

    def __len__(self) -> int:
        return len(self.ranges)

    def with_(self, others: Mapping[str, Range]) -> Table:
        """These ranges, with ``others`` put in or in their place."""
        return Table({**self.ranges, **others}, self.observer)


def save_table(table: Table, folder: Path) -> None:
    """As ``ranges.json`` and ``ranges.safetensors`` in ``folder``."""
    tensors = {
        f"{key}/{end}": getattr(one, end).detach().float().clone()
        for key, one in table.items()
        for end in ("low", "high")
    }
    save_file(tensors, folder / RANGES_TENSORS)
    facts = {
        key: {"axis": one.axis, "bits": one.bits, "role": one.role, "learned": one.learned}
        for key, one in table.items()
    }
    text = json.dumps({"schema": SCHEMA, "observer": table.observer, "ranges": facts}, indent=1)
    (folder / RANGES).write_text(text, encoding="utf-8")


def load_table(folder: Path) -> Table:
    """What ``save_table`` wrote. Raises UsageError where there is nothing, Tampered where it is torn."""
    if not (folder / RANGES).is_file():
        raise UsageError(f"{folder} holds no quantization table", why=f"it has no {RANGES}")
    try:
        facts = json.loads((folder / RANGES).read_text(encoding="utf-8"))
        if facts["schema"] != SCHEMA:
            raise UsageError(f"{folder / RANGES} has the unknown schema {facts['schema']!r}")
        tensors = load_file(folder / RANGES_TENSORS)
        ranges = {
            key: Range(tensors[f"{key}/low"], tensors[f"{key}/high"], **told)
            for key, told in facts["ranges"].items()
        }
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as cause:
        raise Tampered(f"{folder / RANGES} cannot be read", why=str(cause)) from cause
    return Table(ranges, facts["observer"])
