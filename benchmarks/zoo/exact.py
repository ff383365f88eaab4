"""Is a cut exact? A model pruned at random, against the uncut model whose removed slices are zero.

The masks are made from the manifest of kept positions, not from karui's labels, and the inputs are others
than the ones the cut verified itself with.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.zoo.case import Case
from torch import Tensor, nn

from karui.errors import BuildFailed, UsageError
from karui.graph.call import signature_of
from karui.graph.cut import Cut, cut
from karui.graph.cut.removal import Removal
from karui.graph.inspect import private_copy
from karui.graph.select import Selection, at_random
from karui.graph.trace import trace
from karui.graph.units import find_units
from karui.graph.units.groups import find_groups

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Outcome:
    """verdict: exact, nothing (no unit may go, with reasons), refused (cannot be exported) or WRONG.

    share: of the removable units that went; reached: whether every group came within 5 points of the ratio,
    or within one set of units that can only go together.
    """

    verdict: str
    form: str = ""
    error: float = 0.0
    share: float = 0.0
    reached: bool = False
    stays: int = 0
    dropped: int = 0
    why: str = ""


def check(case: Case, network: nn.Module, ratio: float, seed: int) -> Outcome:
    """Prune ``network``, whose parameters are drawn already, by ``ratio`` at random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pruned(case, network, ratio, seed)


def pruned(case: Case, network: nn.Module, ratio: float, seed: int) -> Outcome:
    given = case.inputs(8)
    model = private_copy(network)
    try:
        signature, arrays = signature_of(model, given if len(given) > 1 else given[0], 1)
        traced = trace(model, signature, arrays)
    except (BuildFailed, UsageError) as error:
        return Outcome("refused", why=error.line)
    units = find_units(traced)
    groups = find_groups(units)
    selection, bundles, reached = Selection(units, groups, Removal(units.classes)), [], True
    for group in groups.of:
        wanted = round(ratio * len(group.units))
        ranked = selection.ranked(group, at_random(group, seed))
        for bundle in ranked.bundles:
            gone = len(selection.gone.intersection(group.units))
            if gone + len(bundle.intersection(group.units)) / 2 > wanted:
                break
            bundles += selection.take([bundle])
    made = cut(model, units, bundles, arrays)
    for group in groups.of:
        largest = max((len(b.intersection(group.units)) for b in bundles), default=1)
        off = abs(len(made.removed.intersection(group.units)) - ratio * len(group.units))
        reached &= off <= max(0.05 * len(group.units), largest)
    total = sum(len(group.units) for group in groups.of)
    share = sum(len(made.removed.intersection(group.units)) for group in groups.of) / max(total, 1)
    error = difference(network, made, case)
    verdict = "WRONG" if error > TOLERANCE else "exact" if made.removed else "nothing"
    why = next(iter({**made.dropped, **groups.stays}.values()), "")
    return Outcome(verdict, made.form, error, share, reached, len(groups.stays), len(made.dropped), why)


@torch.no_grad()
def difference(network: nn.Module, made: Cut, case: Case) -> float:
    """Of the cut model from the masked one on fresh inputs, relative to the largest answer."""
    masked = zeroed(network, made.positions)
    worst = 0.0
    for rows in (5,):
        given = case.inputs(rows)
        for mine, theirs in zip(tensors(made.model(*given)), tensors(masked(*given)), strict=True):
            if mine.shape != theirs.shape:
                return float("inf")
            scale = max(float(theirs.abs().max()), 1e-12)
            worst = max(worst, float((mine - theirs).abs().max()) / scale)
    return worst


def zeroed(network: nn.Module, positions: Mapping[str, Any]) -> nn.Module:
    twin = copy.deepcopy(network).eval()
    stored = dict(twin.named_parameters(remove_duplicate=False)) | dict(
        twin.named_buffers(remove_duplicate=False)
    )
    for path, axes in positions.items():
        keep = torch.ones_like(stored[path], dtype=torch.bool)
        for axis, kept in axes.items():
            if axis.startswith("rows"):
                keep &= torch.tensor(kept)
                continue
            line = torch.zeros(keep.shape[int(axis)], dtype=torch.bool)
            line[kept] = True
            keep &= line.reshape([-1 if a == int(axis) else 1 for a in range(keep.ndim)])
        stored[path].data.mul_(keep)
    return twin


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.double()]
    parts = value.values() if isinstance(value, Mapping) else value
    return [tensor for part in parts for tensor in tensors(part)] if parts is not None else []
