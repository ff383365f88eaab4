"""A weight that is mostly one value as where the others lie and what they are; numpy alone.

Places are one byte for each other value (the distance from the one before), or one bit for every value,
whichever is shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from karui.data import Array

KEPT_BYTES = 1024  # a smaller weight is not worth it
WORTH = 0.75  # of its dense bytes; a weight that would take more is left as it is
WIDEST = 255  # the longest distance that one byte holds


@dataclass(frozen=True)
class Packed:
    """fill: the value of most places, (1,). places: as ``form`` says, uint8. values: the others, in order."""

    form: Literal["gaps", "bits"]
    fill: Array
    places: Array
    values: Array
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return self.places.nbytes + self.values.nbytes


def packed(dense: Array) -> Packed | None:
    """None where nothing would be gained. A -0.0 becomes 0.0 (masks leave many)."""
    if dense.nbytes < KEPT_BYTES:
        return None
    flat = np.ascontiguousarray(dense).reshape(-1)
    flat = np.where(flat == 0, np.zeros((), flat.dtype), flat)
    fill = usual(flat)
    there = np.flatnonzero(flat != fill)
    gaps, values = by_gaps(there, flat, fill)
    marks = np.packbits(flat != fill, bitorder="little")  # the spare bits of its last byte are zero
    found = min(
        Packed("gaps", fill, gaps, values, dense.shape),
        Packed("bits", fill, marks, flat[there], dense.shape),
        key=lambda one: one.size_bytes,
    )
    return found if found.size_bytes < WORTH * dense.nbytes else None


def usual(flat: Array) -> Array:
    """Zero; of bytes the most frequent one, which is where their zero point lies."""
    if flat.dtype.itemsize > 1:
        return np.zeros(1, flat.dtype)
    counts = np.bincount(flat.view(np.uint8), minlength=256)
    return np.array([counts.argmax()], np.uint8).view(flat.dtype)


def by_gaps(there: Array, flat: Array, fill: Array) -> tuple[Array, Array]:
    """Distances of one byte each; a longer way takes several steps, which put the usual value down."""
    gaps = np.diff(there, prepend=-1)
    stops = (gaps - 1) // WIDEST  # steps on the way to each value
    ends = np.cumsum(stops + 1) - 1
    steps = np.full(len(there) + int(stops.sum()), WIDEST, np.uint8)
    values = np.full(len(steps), fill[0], flat.dtype)
    steps[ends], values[ends] = gaps - stops * WIDEST, flat[there]
    return steps, values


def unpacked(one: Packed) -> Array:
    """The whole weight again."""
    count = int(np.prod(one.shape, dtype=np.int64))
    flat = np.full(count, one.fill[0], one.values.dtype)
    if one.form == "gaps":
        flat[np.cumsum(one.places.astype(np.int64)) - 1] = one.values
    else:
        flat[np.unpackbits(one.places, count=count, bitorder="little").astype(bool)] = one.values
    return flat.reshape(one.shape)
