"""Sizes that a graph has written in it as numbers, derived again from the labels of what stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from karui.errors import Unsupported
from karui.graph.cut.shapes import Gone, Kept, kept
from karui.graph.trace import argument, packet
from karui.graph.units import CONVS, Units
from karui.graph.units.labels import Labels
from karui.graph.units.layers import MEANS
from karui.graph.units.moves import EXPANDS, FILLED, INDEXES

aten = torch.ops.aten
NEW = {aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty}
VIEWS = {aten.view, aten.reshape, aten._unsafe_view}
SPLITS = {
    aten.chunk,
    aten.split,
    aten.split_with_sizes,
    aten.unsafe_chunk,
    aten.unsafe_split,
    aten.tensor_split,
}


@dataclass(frozen=True)
class Edit:
    """What changes in one node: arguments by position, the operation itself, and a factor on its result.

    picks: (axis, positions) when the operation becomes a plain selection of these positions.
    """

    args: dict[int, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    target: Any = None
    factor: float = 1.0
    picks: tuple[int, Tensor] | None = None


@dataclass(frozen=True)
class Sized:
    """One node, with what stays of its arguments and of its result."""

    units: Units
    gone: Gone
    node: Node

    def of(self, node: Any) -> Kept | None:
        labels = self.units.of(node)
        return kept(labels, self.gone) if isinstance(labels, Labels) else None

    @property
    def source(self) -> Kept:
        found = self.of(self.node.args[0])
        if found is None:
            raise Unsupported("the operand of an operation is unknown")
        return found

    @property
    def result(self) -> Kept:
        found = self.of(self.node)
        if found is None:
            raise Unsupported("the result of an operation is unknown")
        return found

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        return argument(self.node, position, name, default)


def edits(units: Units, gone: Gone) -> dict[str, Edit]:
    """By node name; raises Unsupported where a number cannot be derived again."""
    found = {}
    for node in units.trace.graph.graph.nodes:
        if node.op != "call_function":
            continue
        rule = rule_of(packet(node))
        if rule is not None and units.of(node) is not None:
            edit = rule(Sized(units, gone, node))
            if edit is not None:
                found[node.name] = edit
    return found


def rule_of(target: Any) -> Callable[[Sized], Edit | None] | None:
    if target in RULES:
        return RULES[target]
    return next((rule for family, rule in FAMILIES if target in family), None)


def sizes_edit(place: Sized, position: int, first_axis: int = 0) -> Edit | None:
    """A list of sizes, the first of which belongs to ``first_axis`` of the result."""
    given: Any = place.node.args[position]
    result, old = place.result, list(given)
    new = list(old)
    for i, size in enumerate(old):
        axis = first_axis + i
        if result.sizes[axis] == result.shape[axis] or size == -1:
            continue
        if isinstance(size, Node):
            if -1 in new:
                raise Unsupported("two sizes that are computed would change")
            new[i] = -1
        else:
            new[i] = result.sizes[axis]
    return Edit({position: new}) if new != old else None


def viewed(place: Sized) -> Edit | None:
    return sizes_edit(place, 1)


def made(place: Sized) -> Edit | None:
    return sizes_edit(place, 1 if packet(place.node) in NEW else 0)


def unflattened(place: Sized) -> Edit | None:
    return sizes_edit(place, 2, place.arg(1, "dim") % len(place.source.shape))


def sliced(place: Sized) -> Edit | None:
    axis = place.arg(1, "dim", 0) % len(place.source.shape)
    if not changed_along(place.source, axis):
        return None
    size, step = place.source.shape[axis], place.arg(4, "step", 1)
    start, stop, _ = slice(place.arg(2, "start"), place.arg(3, "end"), 1).indices(size)
    return (
        part(place, axis, start, stop) if step == 1 else picked(place, axis, torch.arange(start, stop, step))
    )


def narrowed(place: Sized) -> Edit | None:
    axis, start, length = (place.arg(i, name) for i, name in ((1, "dim"), (2, "start"), (3, "length")))
    axis %= len(place.source.shape)
    if not changed_along(place.source, axis):
        return None
    return part(place, axis, start % place.source.shape[axis], start % place.source.shape[axis] + length)


def changed_along(found: Kept, axis: int) -> bool:
    return found.sizes[axis] != found.shape[axis]


def part(place: Sized, axis: int, start: int, stop: int) -> Edit:
    """What stays of positions that follow each other."""
    return Edit(picks=(axis, torch.arange(place.source.count(axis, start), place.source.count(axis, stop))))


def picked(place: Sized, axis: int, old: Tensor) -> Edit:
    """Old positions along ``axis``, as new ones."""
    new = place.source.positions(axis)[old]
    return Edit(picks=(axis, new[new >= 0]))


def selected(place: Sized) -> Edit | None:
    axis = place.arg(1, "dim") % len(place.source.shape)
    if not changed_along(place.source, axis):
        return None
    new = int(place.source.positions(axis)[place.arg(2, "index")])
    if new < 0:
        raise Unsupported("the one position that is read would go")
    return Edit({2: new})


def split(place: Sized) -> Edit | None:
    parts = place.units.of(place.node)
    axis = place.arg(2, "dim", 0) % len(place.source.shape)
    sizes = [kept(part, place.gone).sizes[axis] for part in parts]
    if sizes == [part.shape[axis] for part in parts]:
        return None
    return Edit({1: sizes, 2: axis}, target=aten.split_with_sizes.default)


def indexed(place: Sized) -> Edit | None:
    if packet(place.node) is aten.index_select:
        axes, parts = [place.arg(1, "dim") % len(place.source.shape)], [place.arg(2, "index")]
    else:
        given: Any = place.node.args[1]
        axes = [axis for axis, part in enumerate(given) if part is not None]
        parts = [part for part in given if part is not None]
    if not any(changed_along(place.source, axis) for axis in axes):
        return None
    positions = place.units.indices.get(place.node.name)
    if positions is None or len(parts) != 1 or positions.ndim != 1:
        raise Unsupported("an index into units that cannot be derived again")
    return picked(place, axes[0], positions)


def interleaved(place: Sized) -> Edit | None:
    axis = place.arg(2, "dim")
    if axis is None:
        return None
    before, after = (found.sizes[axis % len(found.shape)] for found in (place.source, place.result))
    if after % before:
        raise Unsupported("what is repeated would keep different positions in each copy")
    old = place.arg(1, "repeats")
    return Edit({1: after // before}) if isinstance(old, int) and old * before != after else None


def rolled(place: Sized) -> Edit | None:
    shifts, axes = place.arg(1, "shifts"), place.arg(2, "dims", [])
    ndim = len(place.source.shape)
    touched = [i for i, axis in enumerate(axes) if changed_along(place.source, axis % ndim)]
    if not touched and (axes or not place.source.changed):
        return None
    if len(axes) != 1:
        raise Unsupported("units are rolled along several axes")
    axis = axes[0] % ndim
    return picked(place, axis, torch.arange(place.source.shape[axis]).roll(shifts[0]))


def padded(place: Sized) -> Edit | None:
    given: Any = place.node.args[1]
    pads, ndim = list(given), len(place.source.shape)
    for i in range(0, len(pads), 2):
        axis = ndim - 1 - i // 2
        if not changed_along(place.result, axis):
            continue
        before, size = pads[i], place.source.shape[axis]
        if min(pads[i], pads[i + 1]) < 0:
            old = torch.arange(size)[-pads[i] : size + pads[i + 1]]
            return picked(place, axis, old)
        first, last, whole = (
            place.result.count(axis, n) for n in (before, before + size, place.result.shape[axis])
        )
        pads[i], pads[i + 1] = first, whole - last
    return Edit({1: pads}) if pads != list(given) else None


def convolved(place: Sized) -> Edit | None:
    groups = place.arg(6, "groups", 1)
    if groups == 1:
        return None
    if not isinstance(groups, int):
        raise Unsupported("the number of groups of a convolution is computed")
    mask = place.source.keep[1].reshape(groups, -1).any(1)
    left = int(mask.sum())
    return group_edit(place.node, 6, left) if left != groups else None


def group_edit(node: Node, position: int, value: int) -> Edit:
    return Edit({position: value}) if len(node.args) > position else Edit(kwargs={"groups": value})


def group_normed(place: Sized) -> Edit | None:
    groups = place.arg(1, "num_groups")
    left = int(place.source.keep[1].reshape(groups, -1).any(1).sum())
    return Edit({1: left}) if left != groups else None


def layer_normed(place: Sized) -> Edit | None:
    return normed(place, {})


def rms_normed(place: Sized) -> Edit | None:
    """mean(x^2) is over fewer units, of which those left out were zero."""
    count = len(place.arg(1, "normalized_shape"))
    ratio = math.prod(place.source.shape[-count:]) / math.prod(place.source.sizes[-count:])
    if ratio == 1:
        return None
    eps = place.arg(3, "eps")
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    edit = normed(place, {"eps": eps * ratio} if len(place.node.args) < 4 else {})
    args = edit.args | ({3: eps * ratio} if len(place.node.args) > 3 else {})
    return Edit(args, edit.kwargs, factor=math.sqrt(ratio))


def normed(place: Sized, kwargs: dict[str, Any]) -> Edit:
    count = len(place.arg(1, "normalized_shape"))
    return Edit({1: place.source.sizes[-count:]}, kwargs)


def attended(place: Sized) -> Edit | None:
    """The default scale is one over the root of the width: that of the original stays."""
    if place.node.kwargs.get("scale") is not None or not changed_along(
        place.source, len(place.source.shape) - 1
    ):
        return None
    return Edit(kwargs={"scale": place.source.shape[-1] ** -0.5})


def averaged(place: Sized) -> Edit | None:
    """The mean over units of which some are gone; those were zero, and counted."""
    source = place.source
    axes = place.arg(1, "dim")
    axes = range(len(source.shape)) if axes is None else [axes] if isinstance(axes, int) else axes
    left = math.prod(source.sizes[axis] for axis in axes) / math.prod(source.shape[axis] for axis in axes)
    return Edit(factor=left) if left != 1 else None


RULES: dict[Any, Callable[[Sized], Edit | None]] = {
    aten.unflatten: unflattened, aten.slice: sliced, aten.narrow: narrowed, aten.select: selected,
    aten.roll: rolled, aten.constant_pad_nd: padded, aten.pad: padded, aten.group_norm: group_normed,
    aten.layer_norm: layer_normed, aten.rms_norm: rms_normed, aten.scaled_dot_product_attention: attended,
    aten.repeat_interleave: interleaved,
}  # fmt: skip
FAMILIES: tuple[tuple[Any, Callable[[Sized], Edit | None]], ...] = (
    (VIEWS, viewed), (EXPANDS - {aten.expand_as}, viewed), (FILLED, made), (SPLITS, split),
    (INDEXES, indexed), (CONVS, convolved), (MEANS, averaged),
)  # fmt: skip


def literal_changes(node: Node, edit: Edit) -> Sequence[tuple[int, int]]:
    """Numbers in the node's arguments that change: (old, new)."""
    found = []
    for position, new in edit.args.items():
        old = node.args[position] if len(node.args) > position else None
        pairs = (
            zip(old, new)
            if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple))
            else [(old, new)]
        )
        found += [(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int) and a != b]
    return found
