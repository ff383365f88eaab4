"""Is a cut exact? A model pruned at random, against the uncut model whose removed slices are zero.

The masks are made from the manifest of kept positions, not from karui's labels, and the inputs are others
than the ones the cut verified itself with.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
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
from karui.graph.units import Units, find_units
from karui.graph.units.groups import Group, Groups, Heads, find_groups

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


@dataclass(frozen=True)
class Prepared:
    """A network with its units: traced once, pruned at several ratios."""

    case: Case
    network: nn.Module
    units: Units
    groups: Groups
    arrays: Mapping[str, Any]


def check(case: Case, network: nn.Module, ratio: float, seed: int, heads: Heads = "dims") -> Outcome:
    """Prune ``network``, whose parameters are drawn already, by ``ratio`` at random."""
    found = prepare(case, network)
    return found if isinstance(found, Outcome) else pruned(found, ratio, seed, heads)


def prepare(case: Case, network: nn.Module) -> Prepared | Outcome:
    """The outcome is that it is refused."""
    given, model = case.inputs(8), private_copy(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            signature, arrays = signature_of(model, given if len(given) > 1 else given[0], 1)
            units = find_units(trace(model, signature, arrays))
        except (BuildFailed, UsageError) as error:
            return Outcome("refused", why=error.line)
    return Prepared(case, model, units, find_groups(units), arrays)


def with_values(found: Prepared, network: nn.Module) -> Prepared | None:
    """The same with the parameters of ``network``; None where these are not all that differs."""
    statistics = {
        f"{path}.{name}".removeprefix(".")
        for path, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }
    mine, theirs = found.network.state_dict(), network.state_dict()
    drawn = statistics | dict(network.named_parameters(remove_duplicate=False)).keys()
    constant = {*dict(network.named_buffers(remove_duplicate=False))} - statistics
    old, new = (dict(net.named_buffers(remove_duplicate=False)) for net in (found.network, network))
    if mine.keys() != theirs.keys() or not all(torch.equal(old[name], new[name]) for name in constant):
        return None
    for name in drawn:
        mine[name].copy_(theirs[name])
    return found


def pruned(found: Prepared, ratio: float, seed: int, heads: Heads = "dims") -> Outcome:
    """heads: what goes of attention. The verdict is "nothing" too where there are no groups of this kind."""
    groups = found.groups.offered(heads)
    if heads == "whole" and not any(group.heads for group in groups):
        return Outcome("nothing", why="no heads")
    made, bundles = cut_at_random(found, groups, ratio, seed)
    error = difference(found.network, made, found.case)
    verdict = "WRONG" if not error <= TOLERANCE else "exact" if made.removed else "nothing"
    reached = all(near(group, made, bundles, ratio) for group in groups)
    total = sum(len(group.units) for group in groups)
    share = sum(len(made.removed.intersection(group.units)) for group in groups) / max(total, 1)
    why = next(iter({**made.dropped, **found.groups.stays}.values()), "")
    return Outcome(verdict, made.form, error, share, reached, len(found.groups.stays), len(made.dropped), why)


def cut_at_random(
    found: Prepared, groups: Sequence[Group], ratio: float, seed: int
) -> tuple[Cut, list[set[int]]]:
    """Every group loses bundles of units until it comes nearest to the ratio."""
    selection = Selection(found.units, found.groups, Removal(found.units.classes))
    bundles: list[set[int]] = []
    for group in groups:
        wanted = round(ratio * len(group.units))
        for bundle in selection.ranked(group, at_random(group, seed)).bundles:
            gone = len(selection.gone.intersection(group.units))
            if gone + len(bundle.intersection(group.units)) / 2 > wanted:
                break
            bundles += selection.take([bundle])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cut(found.network, found.units, bundles, found.arrays), bundles


def near(group: Group, made: Cut, bundles: Sequence[set[int]], ratio: float) -> bool:
    """Whether as many units went as asked, to 5 points or one set that can only go together."""
    largest = max([1, *(len(bundle.intersection(group.units)) for bundle in bundles)])
    off = abs(len(made.removed.intersection(group.units)) - ratio * len(group.units))
    return off <= max(0.05 * len(group.units), largest)


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
