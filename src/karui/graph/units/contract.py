"""Products that sum over an axis: linear layers, convolutions, matrix products, attention.

Axes are letters, as in einsum. A unit on a summed axis ties the two operands and ends there; on a free
axis it rides on; on a batch axis, which both have (a head, a group of a convolution), whole rows of units
go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from karui.graph.units.classes import Classes
from karui.graph.units.labels import Labels, Plane, compacted, flat_rows, varying
from karui.graph.units.merge import across, broadcast, common


@dataclass(frozen=True)
class Operand:
    """Labels whose axes are named by ``letters``."""

    letters: str
    labels: Labels

    def named(self, plane: Plane) -> str:
        return "".join(self.letters[axis] for axis in varying(plane))

    def axis(self, letter: str) -> int:
        return self.letters.index(letter)


def contract(
    classes: Classes, one: Operand, other: Operand, out: str, shape: Sequence[int], why: str
) -> Labels:
    """The labels of the product; ``out`` names its axes, ``shape`` is its shape."""
    batch = [letter for letter in one.letters if letter in other.letters and letter in out]
    summed = [letter for letter in one.letters if letter in other.letters and letter not in out]
    parts = [single_axis_rows(classes, operand, batch, summed, why) for operand in (one, other)]
    passing = [ride(operand, planes, summed, out) for operand, planes in zip((one, other), parts)]
    presence = [
        rows_present(classes, operand, planes, batch, why) for operand, planes in zip((one, other), parts)
    ]
    tie(classes, (one, other), parts, batch, summed, why)
    present = tie_batch(classes, (one, other), presence, batch, why)
    planes = without_bare(
        [plane for rides in passing for plane in rides], {out.index(letter) for letter in batch}
    )
    covered = {axis for plane in planes for axis in varying(plane)}
    for letter, labels in present.items():
        axis = out.index(letter)
        if axis not in covered:
            planes.append(labels.reshape([len(labels) if i == axis else 1 for i in range(len(out))]))
    return Labels(tuple(shape), tuple(planes))


def without_bare(planes: Sequence[Plane], batch: set[int]) -> list[Plane]:
    """Labels along a batch axis alone add nothing to those of its rows; one of several is enough."""
    kept = [plane for plane in planes if not set(varying(plane)) <= batch]
    for plane in planes:
        axes = set(varying(plane))
        if axes <= batch and not any(axes <= set(varying(other)) for other in kept):
            kept.append(plane)
    return kept


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


def ride(operand: Operand, planes: Sequence[Plane], summed: Sequence[str], out: str) -> list[Plane]:
    """Planes that do not touch a summed axis, over the axes of the result."""
    kept = [plane for plane in planes if not set(operand.named(plane)) & set(summed)]
    rides = []
    for plane in kept:
        flat = plane
        for letter in reversed(operand.letters):
            if letter not in out:
                flat = flat.select(operand.axis(letter), 0)
        letters = [letter for letter in operand.letters if letter in out]
        order = sorted(range(len(letters)), key=lambda i: out.index(letters[i]))
        sizes = [flat.shape[letters.index(letter)] if letter in letters else 1 for letter in out]
        rides.append(flat.permute(order).reshape(sizes))
    return rides


def rows_present(
    classes: Classes, operand: Operand, planes: Sequence[Plane], batch: Sequence[str], why: str
) -> dict[str, list[Tensor]]:
    """For each batch axis: the labels that say whether its positions are still there."""
    found: dict[str, list[Tensor]] = {}
    for plane in planes:
        letters = [letter for letter in operand.named(plane) if letter in batch]
        if len(letters) > 1:
            classes.freeze(plane, why)
        elif letters:
            found.setdefault(letters[0], []).append(
                classes.stands_for(flat_rows(plane, [operand.axis(letters[0])]))
            )
    return found


def tie(
    classes: Classes,
    operands: Sequence[Operand],
    parts: Sequence[Sequence[Plane]],
    batch: Sequence[str],
    summed: Sequence[str],
    why: str,
) -> None:
    """Unify the two operands' labels along every summed axis."""
    for letter in summed:
        sides = []
        for operand, planes in zip(operands, parts):
            mine = [plane for plane in planes if letter in operand.named(plane)]
            crossed = [plane for plane in mine if len(set(operand.named(plane)) & set(summed)) > 1]
            for plane in crossed:
                classes.freeze(plane, why)
            sides.append((operand, common(classes, mine, why)))
        (one, mine_one), (other, mine_other) = sides
        if mine_one is None or mine_other is None:
            for lone in (mine_one, mine_other):
                if lone is not None:
                    classes.freeze(lone, why)
            continue
        order = [*batch, letter]
        classes.unify(ordered(one, mine_one, order), ordered(other, mine_other, order), why)


def sized(operand: Operand, letter: str) -> int:
    return operand.labels.shape[operand.axis(letter)]


def ordered(operand: Operand, plane: Plane, letters: Sequence[str]) -> Tensor:
    """The plane over exactly these letters; it varies along no other."""
    for axis in reversed(range(plane.ndim)):
        if operand.letters[axis] not in letters:
            plane = plane.select(axis, 0)
    left = [letter for letter in operand.letters if letter in letters]
    return plane.permute([left.index(letter) for letter in letters if letter in left])


def tie_batch(
    classes: Classes,
    operands: Sequence[Operand],
    presence: Sequence[dict[str, list[Tensor]]],
    batch: Sequence[str],
    why: str,
) -> dict[str, Tensor]:
    """A position of a batch axis goes from both operands or from none."""
    found: dict[str, Tensor] = {}
    for letter in batch:
        sides = [side.get(letter, []) for side in presence]
        every = [labels for side in sides for labels in side]
        lone = [sized(operand, letter) > 1 and not side for operand, side in zip(operands, sides)]
        for labels in every:
            if any(lone) or any(len(side) > 1 for side in sides):
                classes.freeze(labels, why)
            elif letter in found:
                classes.unify(found[letter], labels, why)
            else:
                found[letter] = labels
    return found


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
