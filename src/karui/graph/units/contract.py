"""Products that sum over an axis: linear layers, convolutions, matrix products, attention.

Axes are letters, as in einsum. A unit on a summed axis ties the two operands and ends there; on a free
axis it rides on; on a batch axis, which both have (a head, a group of a convolution), whole rows of units
go together. Where an element has several reasons to go, its label is that of either (``Classes.cross``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from karui.graph.units.classes import Classes
from karui.graph.units.labels import Labels, Plane, compacted, flat_rows, on_axis, varying
from karui.graph.units.merge import across, broadcast


@dataclass(frozen=True)
class Operand:
    """Labels whose axes are named by ``letters``."""

    letters: str
    labels: Labels

    def named(self, plane: Plane) -> str:
        return "".join(self.letters[axis] for axis in varying(plane))

    def axis(self, letter: str) -> int:
        return self.letters.index(letter)


@dataclass(frozen=True)
class Side:
    """One operand with simple planes.

    rows: beside each plane, the batch axis it varies along and the labels that say whether its rows there are
    still present; None where it varies along none.
    """

    operand: Operand
    planes: Sequence[Plane]
    rows: Sequence[tuple[str, Tensor] | None]

    def along(self, letter: str, *, bare: bool) -> list[Tensor]:
        """Presence of the positions of a batch axis: by planes that vary along it alone, or by tables."""
        return [
            rows[1]
            for plane, rows in zip(self.planes, self.rows)
            if rows is not None and rows[0] == letter and (len(varying(plane)) == 1) == bare
        ]

    def sized(self, letter: str) -> int:
        return self.operand.labels.shape[self.operand.axis(letter)]


def contract(
    classes: Classes, one: Operand, other: Operand, out: str, shape: Sequence[int], why: str
) -> Labels:
    """The labels of the product; ``out`` names its axes, ``shape`` is its shape."""
    batch = [letter for letter in one.letters if letter in other.letters and letter in out]
    summed = [letter for letter in one.letters if letter in other.letters and letter not in out]
    left, right = (side_of(classes, operand, batch, summed, why) for operand in (one, other))
    for letter in summed:
        tie(classes, (left, right), letter, (batch, summed), why)
    present = {letter: position(classes, (left, right), letter, why) for letter in batch}
    planes: list[Plane] = []
    for side in (left, right):
        for plane, rows in zip(side.planes, side.rows):
            names = side.operand.named(plane)
            if set(names) & set(summed) or names in batch:
                continue
            planes.append(ride(side.operand, plane, out))
            if rows is not None and same(classes, rows[1], present[rows[0]]):
                present[rows[0]] = None  # the table's own rows say it
    for letter, labels in present.items():
        if labels is not None:
            planes.append(on_axis(labels, out.index(letter), len(out)))
    return Labels(tuple(shape), tuple(planes))


def same(classes: Classes, one: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(classes.find(one), classes.find(other))


def side_of(
    classes: Classes, operand: Operand, batch: Sequence[str], summed: Sequence[str], why: str
) -> Side:
    planes = single_axis_rows(classes, operand, batch, summed, why)
    return Side(operand, planes, [rows_present(classes, operand, plane, batch, why) for plane in planes])


def single_axis_rows(
    classes: Classes, operand: Operand, batch: Sequence[str], summed: Sequence[str], why: str
) -> list[Plane]:
    """Planes made simple: beside a summed axis only batch axes vary, and the last axis is no batch axis."""
    planes = []
    for plane in operand.labels.planes:
        names = operand.named(plane)
        if set(names) & set(summed):
            plane = across(
                classes, plane, [operand.axis(n) for n in names if n not in (*batch, *summed)], why
            )
        names = operand.named(plane)
        if len(names) > 1 and names[-1] in batch:
            plane = across(classes, plane, [operand.axis(names[-1])], why)
        if plane.numel() > 1:
            planes.append(plane)
    return planes


def ride(operand: Operand, plane: Plane, out: str) -> Plane:
    """A plane that does not touch a summed axis, over the axes of the result."""
    for letter in reversed(operand.letters):
        if letter not in out:
            plane = plane.select(operand.axis(letter), 0)
    letters = [letter for letter in operand.letters if letter in out]
    order = sorted(range(len(letters)), key=lambda i: out.index(letters[i]))
    sizes = [plane.shape[letters.index(letter)] if letter in letters else 1 for letter in out]
    return plane.permute(order).reshape(sizes)


def rows_present(
    classes: Classes, operand: Operand, plane: Plane, batch: Sequence[str], why: str
) -> tuple[str, Tensor] | None:
    """The batch axis of a plane, and the labels that say whether its positions are still there."""
    letters = [letter for letter in operand.named(plane) if letter in batch]
    if len(letters) > 1:
        classes.freeze(plane, why)
    if len(letters) != 1:
        return None
    return letters[0], classes.stands_for(flat_rows(plane, [operand.axis(letters[0])]))


def tie(
    classes: Classes,
    sides: tuple[Side, Side],
    letter: str,
    letters: tuple[Sequence[str], Sequence[str]],
    why: str,
) -> None:
    """Unify the two operands' labels along a summed axis; ``letters``: batch and summed axes."""
    batch, summed = letters
    found = []
    for side, other in (sides, sides[::-1]):
        mine = [plane for plane in side.planes if letter in side.operand.named(plane)]
        for plane in mine:
            if len(set(side.operand.named(plane)) & set(summed)) > 1:
                classes.freeze(plane, why)
        order = [*batch, letter]
        planes = [ordered(side.operand, plane, order) for plane in reversed(mine)]
        found.append(either(classes, [*beside(side, other, order), *planes]) if planes else None)
    known = [labels for labels in found if labels is not None]
    if len(known) == 2:
        classes.unify(known[0], known[1], why)
    else:
        for lone in known:
            classes.freeze(lone, why)


def beside(side: Side, other: Side, order: Sequence[str]) -> list[Tensor]:
    """What else decides whether elements along the last axis of ``order`` are there: their batch positions.

    Those of an operand of size 1 there, which all positions share, are the other operand's.
    """
    found = []
    for axis, letter in enumerate(order[:-1]):
        own = side.along(letter, bare=True)
        if side.sized(letter) == 1:
            own = [*other.along(letter, bare=True), *other.along(letter, bare=False)]
        found += [on_axis(labels, axis, len(order)) for labels in own]
    return found


def either(classes: Classes, labels: Sequence[Tensor]) -> Tensor:
    """Labels of elements that go when any of several labels at their place goes."""
    return functools.reduce(classes.cross, labels)


def ordered(operand: Operand, plane: Plane, letters: Sequence[str]) -> Tensor:
    """The plane over exactly these letters; it varies along no other."""
    for axis in reversed(range(plane.ndim)):
        if operand.letters[axis] not in letters:
            plane = plane.select(axis, 0)
    left = [letter for letter in operand.letters if letter in letters]
    return plane.permute([left.index(letter) for letter in letters if letter in left])


def position(classes: Classes, sides: tuple[Side, Side], letter: str, why: str) -> Tensor | None:
    """Labels of the positions of a batch axis: each goes from both operands or from none; None: from none."""
    tables = [side.along(letter, bare=False) for side in sides]
    every = [[*side.along(letter, bare=True), *table] for side, table in zip(sides, tables)]
    lone = any(side.sized(letter) > 1 and not labels for side, labels in zip(sides, every))
    if lone or any(len(table) > 1 for table in tables):
        for labels in [labels for found in every for labels in found]:
            classes.freeze(labels, why)
        return None
    found = [either(classes, labels) for labels in every if labels]
    if len(found) > 1:
        classes.unify(found[0], found[1], why)
    return found[0] if found else None


def matmul(classes: Classes, one: Labels, other: Labels, shape: Sequence[int], why: str) -> Labels:
    """``torch.matmul`` with its broadcasting of leading axes."""
    ndim = max(len(one.shape), len(other.shape), 2)
    lead = "abcdefgh"[: ndim - 2]
    left = broadcast(one, ndim) if len(one.shape) > 1 else row_vector(one, ndim)
    right = broadcast(other, ndim) if len(other.shape) > 1 else column_vector(other, ndim)
    full = [*map(max, zip(left.shape[:-2], right.shape[:-2])), left.shape[-2], right.shape[-1]]
    made = contract(classes, Operand(f"{lead}xk", left), Operand(f"{lead}ky", right), f"{lead}xy", full, why)
    planes = [plane.reshape(squeezed(plane.shape, full, one, other)) for plane in made.planes]
    return Labels(tuple(shape), tuple(planes))


def row_vector(labels: Labels, ndim: int) -> Labels:
    return broadcast(labels, ndim)


def column_vector(labels: Labels, ndim: int) -> Labels:
    tall = Labels((*labels.shape, 1), tuple(plane.unsqueeze(-1) for plane in labels.planes))
    return broadcast(tall, ndim)


def squeezed(sizes: Sequence[int], full: Sequence[int], one: Labels, other: Labels) -> list[int]:
    kept = list(sizes)
    if len(other.shape) == 1:
        kept.pop(-1)
    if len(one.shape) == 1:
        kept.pop(-1 if len(other.shape) == 1 else -2)
    return kept


@dataclass(frozen=True)
class Convolution:
    """Labels of a convolution's image and weight, and its form."""

    x: Labels
    weight: Labels
    groups: int
    transposed: bool


def convolve(classes: Classes, conv: Convolution, shape: Sequence[int], why: str) -> Labels:
    """A convolution of (batch, channels, space...); no units lie along space and kernel."""
    x, weight, groups = conv.x, conv.weight, conv.groups
    image = channels_only(classes, x, why)
    kernel = [across_kernel(classes, plane, why) for plane in weight.planes]
    rows, columns = weight.shape[:2]
    first, second = ("k", "o") if conv.transposed else ("o", "k")
    split = (groups, rows // groups, columns)
    planes = [plane.expand(rows, columns).reshape(split) for plane in kernel if plane is not None]
    grouped, channels = compacted(split, planes), x.shape[1]
    size = (x.shape[0], groups, channels // groups)
    left = compacted(size, [plane.expand(x.shape[0], channels).reshape(size) for plane in image])
    for plane in (*left.planes, *grouped.planes):
        record_rows(classes, plane)
    out = (shape[0], groups, shape[1] // groups)
    made = contract(classes, Operand("ngk", left), Operand(f"g{first}{second}", grouped), "ngo", out, why)
    flat = [plane.expand(plane.shape[0], *out[1:]).reshape(plane.shape[0], -1) for plane in made.planes]
    tail = [1] * (len(shape) - 2)
    return Labels(tuple(shape), tuple(plane.reshape(*plane.shape, *tail) for plane in flat))


def record_rows(classes: Classes, plane: Plane) -> None:
    axes = varying(plane)
    if len(axes) > 1:
        classes.equal_rows(flat_rows(plane, axes[:-1]))


def channels_only(classes: Classes, x: Labels, why: str) -> list[Plane]:
    """Planes of an image over (batch, channels); units along space are frozen."""
    kept = []
    for plane in x.planes:
        axes = varying(plane)
        if axes and axes[-1] > 1 and 1 not in axes:
            classes.freeze(plane, why)
            continue
        plane = across(classes, plane, [axis for axis in axes if axis > 1], why)
        kept.append(plane.reshape(plane.shape[:2]))
    return kept


def across_kernel(classes: Classes, plane: Plane, why: str) -> Plane | None:
    axes = varying(plane)
    if axes and axes[0] > 1:
        classes.freeze(plane, "a position of the kernel")
        return None
    return across(classes, plane, [axis for axis in axes if axis > 1], why).reshape(plane.shape[:2])
