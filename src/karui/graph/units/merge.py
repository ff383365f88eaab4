"""Values that meet element by element, with broadcasting: what lies on one place goes together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from karui.graph.units.classes import Classes
from karui.graph.units.labels import Labels, Plane, flat_rows, varying


def merge(classes: Classes, operands: Sequence[Labels], shape: Sequence[int], why: str) -> Labels:
    """The labels of an element-wise result; ``why`` is the reason told where sizes cannot change together."""
    aligned = [distinct(classes, broadcast(labels, len(shape))) for labels in operands if labels.shape]
    fixed = [labels.fixed() for labels in aligned]
    found: dict[tuple[int, ...], Plane] = {}
    for i, labels in enumerate(aligned):
        others = set().union(*(axes for j, axes in enumerate(fixed) if j != i)) if len(aligned) > 1 else set()
        for plane in labels.planes:
            if meets_fixed(classes, plane, others, why):
                continue
            key = varying(plane)
            if key in found:
                classes.unify(found[key], plane, why)
            else:
                found[key] = plane
    return Labels(tuple(shape), tuple(couple(classes, found, why).values()))


def broadcast(labels: Labels, ndim: int) -> Labels:
    missing = ndim - len(labels.shape)
    planes = tuple(plane.reshape([1] * missing + list(plane.shape)) for plane in labels.planes)
    return Labels((*[1] * missing, *labels.shape), planes)


def distinct(classes: Classes, labels: Labels) -> Labels:
    """One plane for each set of axes: an element goes when its label in any plane goes."""
    found: dict[tuple[int, ...], Plane] = {}
    for plane in labels.planes:
        key = varying(plane)
        found[key] = classes.cross(plane, found[key]) if key in found else plane
    return Labels(labels.shape, tuple(found.values()))


def meets_fixed(classes: Classes, plane: Plane, fixed: set[int], why: str) -> bool:
    """Whether the plane has to stay because another operand's size cannot change along its axes."""
    axes = varying(plane)
    hit = fixed & set(axes)
    if not hit:
        return False
    if hit == set(axes) or axes[-1] in hit:
        classes.freeze(plane, why)
        return True
    classes.freeze(classes.stands_for(flat_rows(plane, hit)), why)
    return False


def couple(classes: Classes, found: dict[tuple[int, ...], Plane], why: str) -> dict[tuple[int, ...], Plane]:
    """Planes whose axes overlap: a head's label and the labels of its channels are bound together."""
    kept = dict(found)
    for small in sorted(found, key=len):
        for large in found:
            if small == large or not set(small) & set(large) or small not in kept:
                continue
            if set(small) < set(large):
                bind(classes, found[small], found[large], why)
                del kept[small]
            elif len(small) == len(large) and small < large:
                classes.freeze(found[small], why)
                classes.freeze(found[large], why)
    return kept


def bind(classes: Classes, small: Plane, large: Plane, why: str) -> None:
    """``small`` varies along some of the axes of ``large``.

    A label along the last axis is that of all rows there: an element goes with it or with its whole row.
    Along the others a label stands for a whole row.
    """
    axes = varying(small)
    if varying(large)[-1] not in axes:
        classes.unify(small.reshape(-1), classes.stands_for(flat_rows(large, axes)), why)
        return
    others = [axis for axis in varying(large) if axis not in axes]
    rows = classes.stands_for(flat_rows(large, others))
    sizes = [large.shape[axis] if axis in others else 1 for axis in range(large.ndim)]
    classes.unify(large, classes.cross(rows.reshape(sizes), small), why)


def across(classes: Classes, plane: Plane, axes: Sequence[int], why: str) -> Plane:
    """The plane with everything along ``axes`` made one class; it no longer varies there."""
    for axis in axes:
        if plane.shape[axis] > 1:
            first = plane.narrow(axis, 0, 1)
            classes.unify(first, plane, why)
            plane = first
    return plane


def common(classes: Classes, planes: Sequence[Plane], why: str) -> Plane | None:
    """The plane with most units of several within one value; the others are frozen.

    An element that goes with either of two units has no single label.
    """
    if not planes:
        return None
    best = max(planes, key=lambda plane: len(torch.unique(plane)))
    for plane in planes:
        if plane is not best:
            classes.freeze(plane, f"{why}: two kinds of units on one axis")
    return best
