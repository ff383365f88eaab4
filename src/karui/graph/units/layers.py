"""Layers that are no products: norms, pooling, reductions, softmax, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from karui.graph.units.classes import Classes
from karui.graph.units.labels import Labels, Plane, flat_rows, varying, without
from karui.graph.units.merge import across, merge

aten = torch.ops.aten

SPATIAL = {
    aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d,
    aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d, aten.adaptive_max_pool1d,
    aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, aten.max_pool2d_with_indices, aten.upsample_nearest1d,
    aten.upsample_nearest2d, aten.upsample_nearest3d, aten._upsample_nearest_exact1d,
    aten._upsample_nearest_exact2d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_linear1d,
    aten.upsample_trilinear3d, aten._upsample_bilinear2d_aa, aten.reflection_pad1d, aten.reflection_pad2d,
    aten.replication_pad1d, aten.replication_pad2d, aten.reflection_pad3d, aten.replication_pad3d,
}  # fmt: skip
# sums over units of which some are zero: what is left out does not matter
SUMS = {aten.sum, aten.linalg_vector_norm, aten.norm, aten.frobenius_norm}
MEANS = {aten.mean}
OTHER_REDUCTIONS = {
    aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std, aten.var_mean, aten.logsumexp, aten.argmax,
    aten.argmin, aten.prod, aten.any, aten.all, aten.median, aten.std_mean, aten.count_nonzero,
}  # fmt: skip
SOFTMAXES = {aten.softmax, aten.log_softmax, aten._softmax, aten._log_softmax}
ALONG = SOFTMAXES | {aten.cumsum, aten.cumprod, aten.sort, aten.topk}


def spatial(classes: Classes, x: Labels, value: Any, why: str) -> Any:
    """Works on positions within a channel; the leading two axes keep their units."""
    results = value if isinstance(value, (tuple, list)) else [value]
    planes = []
    for plane in x.planes:
        axes = varying(plane)
        if axes[0] > 1:
            classes.freeze(plane, why)
        else:
            planes.append(across(classes, plane, [axis for axis in axes if axis > 1], why))
    found = [Labels(tuple(result.shape), tuple(planes)) for result in results]
    return found if isinstance(value, (tuple, list)) else found[0]


def channel_vector(labels: Labels, ndim: int) -> Labels:
    """A vector over channels, laid along axis 1."""
    shape = (1, *labels.shape, *[1] * (ndim - 2))
    return Labels(shape, tuple(plane.reshape(1, -1, *[1] * (ndim - 2)) for plane in labels.planes))


def channel_norm(
    classes: Classes, x: Labels, weights: Sequence[Labels], why: str, *, own_statistics: bool = False
) -> Labels:
    """Batch and instance norm: each channel (axis 1) by itself, with its own numbers.

    own_statistics: its mean and variance are those of x, and need all that lies along the other axes.
    """
    for plane in x.planes if own_statistics else ():
        if varying(plane) != (1,):
            classes.freeze(plane, f"{why}: its statistics are over the units")
    spread = [channel_vector(weight, len(x.shape)) for weight in weights]
    return merge(classes, [x, *spread], x.shape, why)


def group_norm(classes: Classes, x: Labels, groups: int, weights: Sequence[Labels], why: str) -> Labels:
    """Statistics are those of a group: all of its channels go, or none."""
    merged = channel_norm(classes, x, weights, why)
    for plane in merged.along(1):
        if varying(plane) != (1,):
            classes.freeze(plane, why)
            continue
        rows = plane.reshape(groups, -1)
        if classes.lenient:
            classes.equal_rows(rows)
            classes.seen_together(rows, why)
        else:
            classes.unify(rows[:, :1], rows, why)
    return merged


def axis_norm(
    classes: Classes, x: Labels, ndim: int, weights: Sequence[Labels], why: str, *, exact: bool
) -> Labels:
    """Over the last ``ndim`` axes: layer norm, whose mean and variance need all units, or RMS norm.

    exact: a smaller norm can be made that gives the same for the units that stay (see cut/edits).
    """
    axes = set(range(len(x.shape) - ndim, len(x.shape)))
    planes = x.planes if exact else tuple(whole_rows(classes, plane, axes, why) for plane in x.planes)
    return merge(classes, [Labels(x.shape, planes), *weights], x.shape, why)


def whole_rows(classes: Classes, plane: Plane, axes: set[int], why: str) -> Plane:
    """Along ``axes`` units stay, but rows of them (of one head each) may go."""
    mine = set(varying(plane)) & axes
    if mine and (classes.lenient or mine == set(varying(plane))):
        classes.seen_together(plane, why)
        return plane
    return across(classes, plane, sorted(mine), why)


def reduce(classes: Classes, x: Labels, value: Any, axes: Sequence[int], why: str, *, sums: bool) -> Any:
    """Labels along the axes that stay. Over units only a sum is possible; ``sums`` says it is one."""
    ndim = len(x.shape)
    gone = {axis % ndim for axis in axes} if axes else set(range(ndim))
    planes = []
    for plane in x.planes:
        mine = set(varying(plane))
        if not mine & gone:
            planes.append(plane)
        elif mine - gone:
            planes.append(partly(classes, plane, gone, why, sums=sums))
        elif not sums:
            classes.freeze(plane, why)
    results = value if isinstance(value, (tuple, list)) else [value]
    found = [
        Labels(tuple(result.shape), tuple(dropped(p, gone, result.ndim) for p in planes))
        for result in results
    ]
    return found if isinstance(value, (tuple, list)) else found[0]


def partly(classes: Classes, plane: Plane, gone: set[int], why: str, *, sums: bool) -> Plane:
    """Reducing some axes of a table of units: in a sum a row may lose some, else it is one unit."""
    axes = varying(plane)
    if axes[-1] in gone and sums:
        kept = [axis for axis in axes if axis not in gone]
        labels = classes.stands_for(flat_rows(plane, kept))
        return labels.reshape([plane.shape[a] if a in kept else 1 for a in range(plane.ndim)])
    return across(classes, plane, [axis for axis in axes if axis in gone], why)


def dropped(plane: Plane, gone: set[int], ndim: int) -> Plane:
    """Without the reduced axes, unless the result keeps them with size 1."""
    if plane.ndim == ndim:
        return plane
    return plane.reshape([size for axis, size in enumerate(plane.shape) if axis not in gone])


def softmax(classes: Classes, x: Labels, axis: int, why: str) -> Labels:
    """Units along the axis see each other: they may go only on request, and inexactly."""
    if not classes.lenient:
        return along(classes, x, axis, why)
    for plane in x.along(axis):
        classes.seen_together(plane, why)
    return x


def along(classes: Classes, x: Labels, axis: int, why: str) -> Labels:
    """Units along the axis see each other and stay; others ride on.

    Of a table of units (paths of a channel, features of a head) each row along the axis is one unit.
    """
    rows = []
    for plane in x.along(axis):
        if len(varying(plane)) == 1:
            classes.freeze(plane, why)
        else:
            rows.append(across(classes, plane, [axis % len(x.shape)], why))
    return Labels(x.shape, (*without(x, axis).planes, *rows))


def embedding(classes: Classes, weight: Labels, indices: Labels, shape: Sequence[int], why: str) -> Labels:
    """Rows stay, for any index may come; columns are units."""
    planes = []
    for plane in weight.planes:
        if 0 in varying(plane):
            classes.freeze(plane, why)
        else:
            planes.append(plane.reshape([1] * (len(shape) - 1) + [-1]))
    return Labels(tuple(shape), tuple(planes))


def weight_norm(classes: Classes, direction: Labels, size: Labels, why: str) -> Labels:
    """g * v / |v|: a removed input of v is zero and does not change |v|."""
    axes = {axis for axis, length in enumerate(size.shape) if length > 1}
    inner = [plane for plane in direction.planes if not set(varying(plane)) & axes]
    outer = Labels(direction.shape, tuple(p for p in direction.planes if set(varying(p)) & axes))
    merged = merge(classes, [outer, size], direction.shape, why)
    return Labels(direction.shape, (*merged.planes, *inner))
