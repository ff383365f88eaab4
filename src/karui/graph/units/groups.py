"""Units that lie side by side: the channels of one width, from which a share can be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from karui.graph.trace import ROOT
from karui.graph.units import Units
from karui.graph.units.labels import varying


@dataclass(frozen=True)
class Group:
    """units: classes in the order in which they lie. axes: (path of a parameter, axis) they run along.

    name: the first of these that gives the units out: its path and axis.
    """

    name: str
    units: tuple[int, ...]
    axes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Groups:
    """stays: for each parameter axis on which nothing can go, why."""

    of: tuple[Group, ...]
    stays: Mapping[str, str] = field(default_factory=dict)


def find_groups(units: Units) -> Groups:
    """Groups of removable units, in the order in which the model computes them."""
    touched: dict[int, dict[tuple[str, int], None]] = {}
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
    found: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for label, axes in touched.items():
        found.setdefault(tuple(axes), []).append(label)
    groups = [
        Group(f"{axes[0][0].removeprefix(ROOT)}[{axes[0][1]}]", tuple(members), axes)
        for axes, members in found.items()
        if len(members) > 1
    ]
    return Groups(tuple(groups), stays)


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
