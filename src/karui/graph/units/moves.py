"""Operations that only move elements: they are run on the labels, so no index arithmetic is redone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from karui.graph.units.classes import FIXED, Classes
from karui.graph.units.labels import Labels, Plane, compact, compacted, flat_rows, on_axis, varying
from karui.graph.units.merge import across, merge

aten = torch.ops.aten

MOVES = {
    aten.view, aten.reshape, aten._unsafe_view, aten.view_as, aten.reshape_as, aten.permute, aten.transpose,
    aten.t, aten.flatten, aten.unflatten, aten.squeeze, aten.unsqueeze, aten.slice, aten.select, aten.narrow,
    aten.split, aten.split_with_sizes, aten.chunk, aten.unsafe_chunk, aten.unsafe_split, aten.unbind,
    aten.tensor_split, aten.flip, aten.roll, aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle,
    aten.native_channel_shuffle, aten.repeat, aten.tile, aten.repeat_interleave, aten.movedim, aten.swapaxes,
    aten.moveaxis, aten.swapdims, aten.diagonal, aten.unfold, aten.numpy_T, aten.mT, aten.adjoint, aten.rot90,
    aten.hsplit, aten.vsplit, aten.im2col,
}  # fmt: skip
PERMUTES = {
    aten.permute, aten.transpose, aten.t, aten.movedim, aten.swapaxes, aten.moveaxis, aten.swapdims,
    aten.numpy_T, aten.mT, aten.adjoint,
}  # fmt: skip
SAME = {
    aten.clone, aten.contiguous, aten.detach, aten.detach_, aten.alias, aten.lift_fresh_copy, aten.lift_fresh,
    aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.dropout_, aten.to, aten._to_copy,
    aten.type_as, aten.requires_grad_, aten.resolve_conj, aten.resolve_neg, aten.native_dropout,
    aten.feature_alpha_dropout,
}  # fmt: skip
EXPANDS = {aten.expand, aten.expand_as, aten.broadcast_to}
FILLED = {
    aten.zeros, aten.ones, aten.full, aten.new_zeros, aten.new_ones, aten.new_full, aten.empty,
    aten.new_empty, aten.scalar_tensor,
}  # fmt: skip
LIKE = {aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like}
PADS = {aten.constant_pad_nd, aten.pad}
PARTS = {aten.slice, aten.narrow}
INDEXES = {aten.index_select, aten.index}


@dataclass(frozen=True)
class Move:
    """An operation with all of its arguments but the tensor that moves."""

    target: Any
    rest: Sequence[Any]
    kwargs: Mapping[str, Any]

    @property
    def packet(self) -> Any:
        return getattr(self.target, "overloadpacket", self.target)

    def __call__(self, full: Tensor) -> Any:
        """Run it on labels.

        Some kernels know floats only, and labels are exact in float64; what such a kernel fills in is zero.
        """
        if self.packet is aten.im2col:
            return self.target((full + 1).double(), *self.rest, **self.kwargs).long() - 1
        if self.packet in (aten.view, aten._unsafe_view):
            return full.reshape(*self.rest)
        return self.target(full, *self.rest, **self.kwargs)


def move(classes: Classes, how: Move, x: Labels, value: Any, why: str) -> Any:
    """Labels of one result, or of each of several."""
    results = value if isinstance(value, (tuple, list)) else [value]
    moved: list[list[Tensor]] = [[] for _ in results]
    for plane in x.planes:
        made = how(in_step(classes, how, plane, why).expand(x.shape))
        for parts, part in zip(moved, made if isinstance(made, (tuple, list)) else [made]):
            parts.append(part)
            keep_lone(classes, part, why)
    found = [compacted(result.shape, parts) for result, parts in zip(results, moved)]
    for labels in found:
        born(classes, x, labels)
    return found if isinstance(value, (tuple, list)) else found[0]


def in_step(classes: Classes, how: Move, plane: Plane, why: str) -> Plane:
    """Rows that may lose different units must stay rows: where axes change places, all rows lose the same."""
    axes = varying(plane)
    if len(axes) < 2 or how.packet not in PERMUTES:
        return plane
    turned = how(plane)
    before, after = flat_rows(plane, axes[:-1]), flat_rows(turned, varying(turned)[:-1])
    if before.shape == after.shape and torch.equal(before, after):
        return plane
    return across(classes, plane, axes[:-1], why)


def keep_lone(classes: Classes, part: Tensor, why: str) -> None:
    """A result that holds a single unit needs it."""
    if part.numel() and int(part.min()) == int(part.max()):
        classes.freeze(part.reshape(-1)[:1], f"{why}: reads it alone")


def born(classes: Classes, before: Labels, after: Labels) -> None:
    """A plane that begins to vary along two axes is a table of units: its rows must stay equally long.

    So must the parts into which the rows of a table are split.
    """
    widest = max((len(varying(plane)) for plane in before.planes), default=0)
    lengths = {plane.shape[varying(plane)[-1]] for plane in before.planes if len(varying(plane)) > 1}
    for plane in after.planes:
        axes = varying(plane)
        if len(axes) > max(1, widest) or (len(axes) > 1 and plane.shape[axes[-1]] not in lengths):
            classes.equal_rows(flat_rows(plane, axes[:-1]))


def expand(classes: Classes, x: Labels, shape: Sequence[int]) -> Labels:
    """One element repeated as often as needed: each new position is a unit of its own, without a weight."""
    missing = len(shape) - len(x.shape)
    old = (*[1] * missing, *x.shape)
    planes = [plane.reshape([1] * missing + list(plane.shape)) for plane in x.planes]
    grown = [axis for axis, size in enumerate(shape) if size > 1 and old[axis] == 1 and axis > 0]
    return Labels(tuple(shape), (*planes, *(on_axis(classes.new(shape[a]), a, len(shape)) for a in grown)))


def filled(classes: Classes, shape: Sequence[int]) -> Labels:
    """A tensor of one value can be made in any size."""
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    return Labels(tuple(shape), tuple(on_axis(classes.new(shape[a]), a, len(shape)) for a in axes))


def pad(classes: Classes, x: Labels, pads: Sequence[int], shape: Sequence[int]) -> Labels:
    """Padding an axis of units adds positions that hold a constant: new units with no weight."""
    padded = {len(x.shape) - 1 - i // 2 for i, amount in enumerate(pads) if amount}
    planes: list[Plane] = []
    for plane in x.planes:
        axes = varying(plane)
        mine = [amount if len(x.shape) - 1 - i // 2 in axes else 0 for i, amount in enumerate(pads)]
        grown = aten.constant_pad_nd(plane, mine, FIXED)
        if len(axes) == 1 and axes[0] in padded:
            fresh = aten.constant_pad_nd(torch.zeros_like(plane), mine, 1) == 1
            grown[fresh] = classes.new(int(fresh.sum()))
        planes.append(grown)
    return Labels(tuple(shape), tuple(planes))


def concatenate(
    classes: Classes, parts: Sequence[Labels], axis: int, shape: Sequence[int], why: str
) -> Labels:
    """Units along ``axis`` follow each other; those along other axes have to go together in all parts."""
    parts = [part for part in parts if part.shape != (0,)]
    axis %= len(shape)
    beside = [Labels(squashed(part.shape, axis), side_planes(part, axis)) for part in parts]
    merged = merge(classes, beside, squashed(shape, axis), why)
    joined = [one_along(classes, part, axis, why) for part in parts]
    if all(plane is None for plane in joined):
        return Labels(tuple(shape), merged.planes)
    other = {a for plane in joined if plane is not None for a in varying(plane)} - {axis}
    sizes = [[shape[a] if a in other else 1 for a in range(len(shape))] for _ in parts]
    for size, part in zip(sizes, parts):
        size[axis] = part.shape[axis]
    fulls = [
        torch.full(size, FIXED) if plane is None else plane.expand(size) for plane, size in zip(joined, sizes)
    ]
    whole = compact(torch.cat(fulls, axis))
    planes = [plane for plane in merged.planes if not set(varying(plane)) <= other]
    return Labels(tuple(shape), (*planes, *([whole] if whole is not None else [])))


def squashed(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return tuple(1 if a == axis else size for a, size in enumerate(shape))


def side_planes(part: Labels, axis: int) -> tuple[Plane, ...]:
    return tuple(plane for plane in part.planes if axis not in varying(plane))


def one_along(classes: Classes, part: Labels, axis: int, why: str) -> Plane | None:
    found = part.along(axis)
    if len(found) > 1:
        for plane in found:
            classes.freeze(plane, why)
        return None
    return found[0] if found else None


def stack(classes: Classes, parts: Sequence[Labels], axis: int, shape: Sequence[int], why: str) -> Labels:
    """Parts side by side along a new axis; each keeps its own units, and as many of them."""
    axis %= len(shape)
    keys = {varying(plane) for part in parts for plane in part.planes}
    planes = []
    for key in sorted(keys):
        mine = [[plane for plane in part.planes if varying(plane) == key] for part in parts]
        if any(len(found) != 1 for found in mine):
            for found in mine:
                for plane in found:
                    classes.freeze(plane, why)
            continue
        whole = compact(torch.stack([found[0] for found in mine], axis))
        if whole is None:
            continue
        if axis in varying(whole):
            classes.equal_rows(flat_rows(whole, [axis]))
        planes.append(whole)
    return Labels(tuple(shape), tuple(planes))


def index(classes: Classes, how: Move, x: Labels, value: Tensor, why: str, *, constant: bool) -> Labels:
    """Picking by index tensors; where the indices depend on the input, units along those axes stay."""
    if how.packet is aten.index_select:
        axes = {how.rest[0] % len(x.shape)}
    else:
        axes = {axis for axis, part in enumerate(how.rest[0]) if part is not None}
    kept = []
    for plane in x.planes:
        if axes & set(varying(plane)) and not constant:
            classes.freeze(plane, why)
        else:
            kept.append(how.target(plane.expand(x.shape), *how.rest))
    return compacted(value.shape, kept)
