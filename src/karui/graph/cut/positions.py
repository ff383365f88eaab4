"""Kept positions as a manifest has them: taking them from a tensor, putting them back, and whose they are.

``axes``: for each axis that lost something, ``"0": [kept positions]``; ``"rows 1": table`` where the rows
along axis 1 keep different ones (True for what stays).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from karui.graph.cut.in_module import labelled
from karui.graph.cut.shapes import Gone, Kept, kept
from karui.graph.units import Units
from karui.graph.units.classes import FIXED, bonds
from karui.graph.units.labels import varying

ROWS = "rows "
Axes = Mapping[str, Any]


def kept_positions(model: nn.Module, units: Units, gone: Gone) -> dict[str, dict[str, Any]]:
    """Path of a stored tensor -> ``axes``, for all that lose something."""
    found: dict[str, dict[str, Any]] = {}
    for path, _, labels in labelled(model, units):
        left = kept(labels, gone)
        if left.changed:
            found[path] = axes_of(left)
    return found


def axes_of(left: Kept) -> dict[str, Any]:
    axes: dict[str, Any] = {
        str(axis): mask.nonzero().reshape(-1).tolist()
        for axis, mask in enumerate(left.keep)
        if not mask.all()
    }
    if left.rows is not None:
        axes[f"{ROWS}{left.ragged}"] = left.rows.tolist()
    return axes


def kept_of(shape: tuple[int, ...], axes: Axes) -> Kept:
    """The inverse of ``axes_of``; raises ValueError or IndexError where positions do not fit ``shape``."""
    keep = [torch.ones(size, dtype=torch.bool) for size in shape]
    rows, ragged = None, -1
    for word, given in axes.items():
        if word.startswith(ROWS):
            rows, ragged = torch.tensor(given, dtype=torch.bool), int(word.removeprefix(ROWS))
        else:
            mask = torch.zeros(shape[int(word)], dtype=torch.bool)
            mask[torch.tensor(given, dtype=torch.int64)] = True
            keep[int(word)] = mask
    return Kept(shape, tuple(keep), rows, ragged)


def spread(part: Tensor, left: Kept) -> Tensor:
    """The whole tensor, with ``part`` at the kept positions and zeros at the others; ValueError if it does
    not fit.
    """
    places = left.take(torch.arange(math.prod(left.shape)).reshape(left.shape))
    if places.shape != part.shape:
        raise ValueError(f"a stored tensor is {tuple(part.shape)}, its positions make {tuple(places.shape)}")
    whole = part.new_zeros(math.prod(left.shape))
    whole[places.reshape(-1)] = part.reshape(-1)
    return whole.reshape(left.shape)


def removed_at(model: nn.Module, units: Units, positions: Mapping[str, Axes]) -> set[int]:
    """The classes that are gone when just ``positions`` stay: those left in no stored tensor."""
    seen: set[int] = set()
    alive: set[int] = set()
    for path, tensor, labels in labelled(model, units):
        left = kept_of(tuple(tensor.shape), positions.get(path, {}))
        for plane in labels.planes:
            roots = units.classes.find(plane)
            seen.update(roots.reshape(-1).tolist())
            alive.update(roots[staying(left, plane)].tolist())
    removed = seen - alive - {FIXED}
    known = bonds(units.classes)
    while added := known.missing(frozenset(), removed):
        removed |= added
    return removed


def staying(left: Kept, plane: Tensor) -> Tensor:
    """Which elements of a plane stay."""
    stays = torch.ones(plane.shape, dtype=torch.bool)
    for axis in varying(plane):
        stays &= left.keep[axis].reshape([-1 if a == axis else 1 for a in range(plane.ndim)])
    if left.rows is not None and left.rows.shape == plane.shape:
        stays &= left.rows
    return stays
