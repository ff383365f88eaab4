"""Units that lie side by side: the channels of one width, from which a share can be chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from karui.graph.trace import ROOT
from karui.graph.units import Units
from karui.graph.units.classes import Classes, bonds
from karui.graph.units.labels import varying

Axis = tuple[str, int]  # of a parameter: path and axis
Heads = Literal["dims", "whole", "both"]


@dataclass(frozen=True)
class Group:
    """units: classes in the order in which they lie. axes: (path of a parameter, axis) they run along.

    name: the first of these that gives the units out: its path and axis. heads: whether each unit is a whole
    row of others, as an attention head is of its channels. joint: unit -> all that goes with it, where that
    is more than the unit itself.
    """

    name: str
    units: tuple[int, ...]
    axes: tuple[Axis, ...]
    heads: bool = False
    joint: Mapping[int, frozenset[int]] = field(default_factory=dict)

    def parts(self, unit: int) -> frozenset[int]:
        return self.joint.get(unit, frozenset((unit,)))

    @property
    def members(self) -> frozenset[int]:
        """All units, with all that goes with them."""
        return frozenset().union(*map(self.parts, self.units))


@dataclass(frozen=True)
class Groups:
    """stays: for each parameter axis on which nothing can go, why."""

    of: tuple[Group, ...]
    stays: Mapping[str, str] = field(default_factory=dict)

    def offered(self, heads: Heads) -> tuple[Group, ...]:
        """Groups to choose from: of attention its heads' widths, whole heads instead of these, or both."""
        if heads == "both":
            return self.of
        if heads == "dims":
            return tuple(group for group in self.of if not group.heads)
        rows = frozenset().union(*(group.members for group in self.of if group.heads))
        return tuple(group for group in self.of if group.heads or rows.isdisjoint(group.members))


def find_groups(units: Units) -> Groups:
    """Groups of removable units, in the order in which the model computes them; heads follow the others."""
    touched, stays = axes_of(units)
    known = bonds(units.classes)
    joint = {label: known.all_with(label) for label in known.naming}
    blocked = keep_blocked(units.classes, joint, touched, stays)
    rows = {label for label, rows in known.whole.items() if max(map(len, rows)) > 1}
    heads = rows - blocked - given_out(units, touched)
    single = [label for label in touched if label not in heads and label not in known.crossed]
    whole = {joint[label]: label for label in sorted(heads, reverse=True)}  # one for each row
    found: dict[tuple[bool, tuple[Axis, ...]], list[int]] = {}
    for label in [*single, *sorted(whole.values())]:
        parts = joint.get(label, frozenset((label,)))
        axes = {axis: None for part in sorted(parts) for axis in touched.get(part, ())}
        found.setdefault((label in heads, tuple(axes)), []).append(label)
    groups = [
        Group(
            f"{axes[0][0].removeprefix(ROOT)}[{axes[0][1]}]{' heads' * is_heads}",
            tuple(members),
            axes,
            is_heads,
            {label: joint[label] for label in members if label in joint},
        )
        for (is_heads, axes), members in found.items()
        if axes and len(members) > 1
    ]
    return Groups(tuple(groups), stays)


def axes_of(units: Units) -> tuple[dict[int, dict[Axis, None]], dict[str, str]]:
    """The axes of parameters that each class that may go runs along, and why others stay."""
    touched: dict[int, dict[Axis, None]] = {}
    stays: dict[str, str] = {}
    classes = units.classes
    for path, labels in units.weights.items():
        for plane in labels.planes:
            axis = varying(plane)[-1]
            if len(varying(plane)) == 1 and axis > 1:
                continue  # a kernel's extent
            for label in dict.fromkeys(classes.find(plane).reshape(-1).tolist()):
                if label in classes.frozen:
                    stays.setdefault(f"{path.removeprefix(ROOT)}[{axis}]", classes.frozen[label])
                else:
                    touched.setdefault(label, {})[(path, axis)] = None
    return touched, stays


def given_out(units: Units, touched: Mapping[int, Iterable[Axis]]) -> set[int]:
    """Classes that a weight has as outputs: channels in their own right, whatever is made of them later."""
    return {
        label
        for label, axes in touched.items()
        if any(axis == 0 and math.prod(units.weights[path].shape[1:]) > 1 for path, axis in axes)
    }


def keep_blocked(
    classes: Classes,
    joint: Mapping[int, frozenset[int]],
    touched: dict[int, dict[Axis, None]],
    stays: dict[str, str],
) -> set[int]:
    """Classes that something which has to stay goes with; they leave ``touched`` for ``stays``."""
    blocked = {label: parts & classes.frozen.keys() for label, parts in joint.items()}
    for label in [label for label in touched if blocked.get(label)]:
        for path, axis in touched.pop(label):
            why = classes.frozen[min(blocked[label])]
            stays.setdefault(f"{path.removeprefix(ROOT)}[{axis}]", why)
    return {label for label, parts in blocked.items() if parts}


def elements(units: Units) -> Mapping[int, int]:
    """How many stored numbers each class has; shared tensors count once."""
    count: dict[int, int] = {}
    seen: set[int] = set()
    for labels in units.weights.values():
        if id(labels) in seen:
            continue
        seen.add(id(labels))
        for plane in labels.planes:
            each = 1
            for axis, size in enumerate(labels.shape):
                each *= size if plane.shape[axis] == 1 else 1
            ids, counts = torch.unique(units.classes.find(plane), return_counts=True)
            for label, times in zip(ids.tolist(), counts.tolist()):
                count[label] = count.get(label, 0) + times * each
    return count
