"""A narrower copy of a model: the same share of the units of every layer, found and cut as in pruning.

Nothing is refitted: it is a student that will be trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from karui.artifact import Signature
from karui.errors import Unsupported, UsageError
from karui.graph.cut import Cut, cut
from karui.graph.cut.removal import Removal
from karui.graph.importance import norms
from karui.graph.select import Selection, allowed_counts, named_units, nearest
from karui.graph.trace import trace
from karui.graph.units import find_units
from karui.graph.units.groups import find_groups

if TYPE_CHECKING:
    from karui.data import Arrays


@dataclass(frozen=True)
class Narrower:
    """kept: axis of a parameter -> units kept of how many. stays: axis on which nothing could go -> why."""

    cut: Cut
    kept: dict[str, str]
    stays: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """As the cut of a pruning is told."""
        done = self.cut
        told: dict[str, Any] = {"form": done.form, "cut_error": done.error, "inexact": list(done.inexact)}
        return told | {"kept": self.kept, "positions": dict(done.positions)}


def narrower(
    model: nn.Module,
    signature: Signature,
    inputs: Arrays,
    width: float,
    *,
    multiple_of: int = 1,
    protect: tuple[str, ...] = (),
) -> Narrower:
    """Of each group of layers the share ``width`` of its units, those with the largest weights (L2).

    ``model`` stays as it is. multiple_of: widths are multiples of it. protect: layers whose outputs stay.
    """
    if not 0 < width < 1:
        raise UsageError(f"width must lie between 0 and 1, got {width:g}")
    units = find_units(trace(model, signature, inputs))
    groups = find_groups(units)
    selection = Selection(units, groups, Removal(units.classes, named_units(units, protect, "protect")))
    bundles: list[set[int]] = []
    for group in groups.offered("dims"):
        ranked = selection.ranked(group, norms(units, units.trace.graph, group, 2.0, 0), multiple_of)
        count = nearest(allowed_counts(ranked, multiple_of), (1 - width) * len(group.units))
        bundles += selection.take(ranked.bundles[:count])
    done = cut(model, units, bundles, inputs)
    kept = {
        one.name: f"{len(set(one.units) - done.removed)} of {len(one.units)}"
        for one in groups.offered("dims")
    }
    return Narrower(done, kept, dict(groups.stays))


@torch.no_grad()
def start_anew(model: nn.Module, seed: int) -> None:
    """Weights and statistics as a fresh network has them, by each module's own ``reset_parameters``.

    Raises Unsupported where a parameter is in a module that has no such method.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for path, part in model.named_modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
            elif own := [name for name, one in part.named_parameters(recurse=False) if one.requires_grad]:
                where = f"{path}.{own[0]}" if path else own[0]
                raise Unsupported(
                    f"{where} cannot be started anew",
                    why=f"{type(part).__name__} has no reset_parameters()",
                    fix="start=weights",
                )
