"""LSTM, GRU and plain RNN: a hidden unit is a row of every gate and a column of the next step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from karui.graph.units.classes import FIXED, Classes
from karui.graph.units.labels import Labels, compact, varying
from karui.graph.units.merge import across, common

aten = torch.ops.aten
GATES = {aten.lstm: 4, aten.gru: 3, aten.rnn_tanh: 1, aten.rnn_relu: 1}


def recurrent(
    classes: Classes, kind: Any, parts: Sequence[Any], options: Sequence[Any], values: Sequence[Any], why: str
) -> list[Labels]:
    """``parts``: labels of the input, of the first states (a list), and of the weights (a list).

    ``options``: has_biases, layers, dropout, train, bidirectional, batch_first. ``values``: the results.
    """
    x, states, weights = parts
    has_biases, layers, _, _, bidirectional, _ = options
    directions = 2 if bidirectional else 1
    each = len(weights) // (layers * directions)
    projected = each - (4 if has_biases else 2)
    feature = features(classes, x, why)
    hidden: list[Tensor] = []
    cells: list[Tensor] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            start = (layer * directions + direction) * each
            cell, out = one_cell(
                classes, GATES[kind], weights[start : start + each], feature, bool(projected), why
            )
            cells.append(cell)
            outputs.append(out)
        hidden += outputs
        feature = torch.cat(outputs)
    starts = [torch.stack(hidden), torch.stack(cells)] if kind is aten.lstm else [torch.stack(hidden)]
    for rows, state in zip(starts, states):
        classes.equal_rows(rows)
        if state is not None:
            first_state(classes, rows, state, why)
    tables = [feature.reshape(1, 1, -1), *(rows.unsqueeze(1) for rows in starts)]
    return [labelled(table, value) for table, value in zip(tables, values)]


def features(classes: Classes, x: Labels, why: str) -> Tensor:
    """One label for each input feature (the last axis); those along time or batch are frozen."""
    last = len(x.shape) - 1
    for plane in x.planes:
        if last not in varying(plane):
            classes.freeze(plane, why)
    known = common(classes, x.along(last), why)
    if known is None:
        return torch.full((x.shape[last],), FIXED)
    return across(classes, known, [axis for axis in varying(known) if axis != last], why).reshape(-1)


def one_cell(
    classes: Classes, gates: int, weights: Sequence[Labels], feature: Tensor, projected: bool, why: str
) -> tuple[Tensor, Tensor]:
    """Labels of the cell's units and of what it gives out: the same, unless it projects."""
    axis = axis_labels
    inner, outer = weights[0], weights[1]
    classes.unify(axis(inner, 1), feature, why)
    rows = axis(inner, 0).reshape(gates, -1)
    unit = rows[0]
    classes.unify(unit, rows, why)
    classes.unify(unit, axis(outer, 0).reshape(gates, -1), why)
    for bias in weights[2:4] if len(weights) >= 4 else []:
        classes.unify(unit, axis(bias, 0).reshape(gates, -1), why)
    if not projected:
        classes.unify(unit, axis(outer, 1), why)
        return unit, unit
    projection = weights[-1]
    classes.unify(unit, axis(projection, 1), why)
    out = axis(projection, 0)
    classes.unify(out, axis(outer, 1), why)
    return unit, out


def axis_labels(labels: Labels, axis: int) -> Tensor:
    """The labels along one axis of a weight that is stored as it is."""
    found = [plane for plane in labels.planes if varying(plane) == (axis,)]
    return found[0].reshape(-1) if len(found) == 1 else torch.full((labels.shape[axis],), FIXED)


def first_state(classes: Classes, rows: Tensor, state: Labels, why: str) -> None:
    """Units go together with those of the first state; one given from outside keeps them all."""
    last = len(state.shape) - 1
    plane = common(classes, state.along(last), why)
    if plane is None:
        classes.freeze(rows, why)
        return
    for other in state.planes:
        if last not in varying(other):
            classes.freeze(other, why)
    wide = plane.expand(len(rows), *plane.shape[1:])[:, 0] if plane.ndim == 3 else plane
    classes.unify(wide, rows, why)


def labelled(table: Tensor, value: Tensor) -> Labels:
    plane = compact(table)
    return Labels(tuple(value.shape), () if plane is None else (plane,))
