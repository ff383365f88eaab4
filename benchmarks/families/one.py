"""One architecture: found, cut, compared; prints one line of JSON.

python -m benchmarks.families.one timm/vit_tiny_patch16_224 [--peer]
"""

from __future__ import annotations

import argparse
import copy
import json
import operator
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, compress
from typing import Any

import torch
from benchmarks.families.models import FAMILIES, Family
from benchmarks.zoo import randomised
from benchmarks.zoo.case import Case, Inputs, normal
from benchmarks.zoo.exact import TOLERANCE, difference, tensors
from torch import Tensor, nn

from karui.errors import BuildFailed, UsageError
from karui.graph.call import signature_of
from karui.graph.cut import TOLERANCE_64, Cut, cut
from karui.graph.cut.removal import Removal
from karui.graph.inspect import macs, private_copy
from karui.graph.select import Selection, at_random
from karui.graph.trace import trace
from karui.graph.units import Units, find_units
from karui.graph.units.groups import Groups, find_groups

RATIO, SEED, ROWS = 0.5, 0, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--peer", action="store_true")
    args = parser.parse_args()
    print(json.dumps(row_of(args.name, peer=args.peer)), flush=True)


def row_of(name: str, *, peer: bool) -> dict[str, Any]:
    """The row of karui, or that of the peer."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    family = FAMILIES[name]
    torch.manual_seed(SEED)  # for what constructors draw
    network = randomised(family.network(), SEED).eval().requires_grad_(requires_grad=peer)
    return of_peer(family, network) if peer else measured(family, network)


def measured(family: Family, network: nn.Module) -> dict[str, Any]:
    """The row of karui; ``verdict`` as in ``zoo.exact``, or "dead": answers hardly depend on the input."""
    images = images_of(family.size)
    given = images(8)
    model, clock = private_copy(network), Clock()
    try:
        signature, arrays = signature_of(model, given[0], ROWS)
        traced = trace(model, signature, arrays)
    except (BuildFailed, UsageError) as error:
        return {"verdict": "refused", "why": error.line, "trace_s": clock.lap()}
    row: dict[str, Any] = {"trace_s": clock.lap(), "dynamic": traced.dynamic}
    units = find_units(traced)
    row["units_s"] = clock.lap()
    groups = find_groups(units)
    bundles = at_random_half(units, groups)
    row["select_s"] = clock.lap()
    made = cut(model, units, bundles, arrays)
    row["cut_s"] = clock.lap()
    rows = 1 if traced.dynamic else ROWS
    row["macs"] = [macs(m, (given[0][:rows],), {}) // rows for m in (network, made.model)]
    fresh = Case(family.name, "", lambda: network, lambda count: images(count if traced.dynamic else ROWS))
    row |= judged(network, made, fresh) | weights(network, made.positions)
    offered = [unit for group in groups.offered("dims") for unit in group.units]
    row["share"] = len(made.removed.intersection(offered)) / max(len(offered), 1)
    row["reasons"] = Counter([*groups.stays.values(), *made.dropped.values()]).most_common(6)
    return row


def at_random_half(units: Units, groups: Groups) -> list[set[int]]:
    """Bundles that are about half of each group."""
    selection = Selection(units, groups, Removal(units.classes))
    bundles: list[set[int]] = []
    for group in groups.offered("dims"):
        ranked = selection.ranked(group, at_random(group, SEED))
        wanted = round(RATIO * len(group.units)) - len(selection.gone.intersection(group.units))
        sizes = [len(bundle.intersection(group.units)) for bundle in ranked.bundles]
        fits = [before + size / 2 <= wanted for before, size in zip(accumulate(sizes, initial=0), sizes)]
        bundles += selection.take(list(compress(ranked.bundles, accumulate(fits, operator.and_))))
    return bundles


def judged(network: nn.Module, made: Cut, case: Case) -> dict[str, Any]:
    """The error has to be small against the answers, and against what they differ between inputs.

    "exact64": in float64 it is, and float32 is too coarse for this network with random weights.
    """
    error, told = difference(network, made, case), spread(made.model, case.inputs(5))
    if not made.removed:
        verdict = "nothing"
    elif error > TOLERANCE and difference(*in_double(network, made, case)) <= TOLERANCE_64:
        verdict = "exact64"
    elif error <= TOLERANCE:
        verdict = "exact" if error <= told / 100 else "dead"
    else:
        verdict = "WRONG"
    return {
        "verdict": verdict,
        "form": made.form,
        "error": error,
        "spread": told,
        "dropped": len(made.dropped),
    }


def in_double(network: nn.Module, made: Cut, case: Case) -> tuple[nn.Module, Cut, Case]:
    twins = copy.deepcopy(network).double(), copy.deepcopy(made.model).double()
    inputs = replace(case, inputs=lambda rows: tuple(tensor.double() for tensor in case.inputs(rows)))
    return twins[0], replace(made, model=twins[1]), inputs


def images_of(size: int) -> Inputs:
    """Loud noise around a colour of each image: quiet noise, averaged over pixels, tells nothing."""
    parts = normal((3, size, size), (3, 1, 1))

    def inputs(rows: int) -> tuple[Tensor, ...]:
        noise, colour = parts(rows)
        return (4 * noise + 8 * colour,)

    return inputs


class Clock:
    """Seconds of this process's CPU since the last lap."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def lap(self) -> float:
        now = time.process_time()
        self.last, spent = now, now - self.last
        return round(spent, 2)


@torch.no_grad()
def spread(network: nn.Module, given: tuple[Tensor, ...]) -> float:
    """How much answers differ between samples, of the largest; 0 where an answer is no number."""
    found = []
    for answer in tensors(network(*given)):
        differs = float((answer - answer[:1]).abs().max()) / max(float(answer.abs().max()), 1e-12)
        found.append(differs if bool(answer.isfinite().all()) else 0.0)
    return min(found)


def weights(network: nn.Module, positions: Mapping[str, Any]) -> dict[str, int]:
    """How many weights of two axes or more there are, and how many of them became smaller."""
    found = [name for name, tensor in network.named_parameters() if tensor.ndim > 1]
    return {"weights": len(found), "smaller": sum(name in positions for name in found)}


def of_peer(family: Family, network: nn.Module) -> dict[str, Any]:
    """The row of Torch-Pruning: magnitude, half of every layer, as its README says."""
    import torch_pruning as tp

    clock, given = Clock(), torch.randn(1, 3, family.size, family.size)
    before = macs(network, (given,), {})
    twin = copy.deepcopy(network)
    pruner = tp.pruner.BasePruner(
        twin, given, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=RATIO,
        ignored_layers=heads(network, twin, given),
    )  # fmt: skip
    pruner.step()
    return {"macs": [before, macs(twin.eval(), (given,), {})], "seconds": clock.lap()}


def heads(network: nn.Module, twin: nn.Module, given: Tensor) -> list[nn.Module]:
    """The layers whose outputs are answers: those without which an answer no longer has its values."""
    with torch.no_grad():
        sizes = {tuple(answer.shape)[1] for answer in tensors(network(given))}
    return [
        module
        for module in twin.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.shape[0] in sizes
    ]


if __name__ == "__main__":
    main()
