"""Removing units for good: plan, verify on copies, then give the result. The given model never changes.

The reference is exact: with every parameter of the removed units set to zero, the uncut model must answer
what the cut one answers, up to float rounding, for several inputs and batch sizes. (Where units may go that
a norm looks at together, it counts only those that stay, see cut/partial.) A cut that fails is taken apart
until the units that spoil it are found; these stay, with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from karui.artifact import Signature
from karui.errors import KaruiError, Unsupported, foreign
from karui.graph.capture import Flat
from karui.graph.cut.edits import edits
from karui.graph.cut.in_graph import cut_graph
from karui.graph.cut.in_module import cut_module, labelled
from karui.graph.cut.partial import over_what_stays
from karui.graph.cut.positions import kept_positions, removed_at
from karui.graph.cut.shapes import Gone, gone_of, zero_out
from karui.graph.inspect import private_copy
from karui.graph.program import flat
from karui.graph.trace import twin_of
from karui.graph.units import Units

if TYPE_CHECKING:
    from karui.data import Arrays

TOLERANCE, TOLERANCE_64 = 1e-5, 1e-9  # largest difference over largest answer, in float32 and in float64
CHECKED_ROWS = (2, 3)
HALVINGS = 64  # of sets that fail, each a few runs of the model: one guilty unit of 10,000 takes 14


@dataclass(frozen=True)
class Cut:
    """form: "module" (the user's own class) or "graph" (the exported graph, rewritten, fixed in eval mode).

    error: largest relative difference to the masked model. positions: path of a stored tensor -> for each
    axis that lost something, the positions it kept (a table where rows kept different ones).
    dropped: class -> why it was not removed after all. inexact: operations that now see fewer units than in
    the original, and give other numbers for the rest.
    """

    model: nn.Module
    form: str
    error: float
    removed: frozenset[int]
    positions: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[int, str] = field(default_factory=dict)
    inexact: tuple[str, ...] = ()


def cut(model: nn.Module, units: Units, bundles: Sequence[Collection[int]], arrays: Arrays) -> Cut:
    """Remove all ``bundles`` (sets of classes that may go by themselves) from a copy of ``model``.

    ``model`` is in eval mode; ``units`` were found on it. arrays: example inputs to verify with.
    """
    checks = checked_on(units, arrays)
    good, dropped = sift(model, units, list(bundles), checks, iter(range(HALVINGS)))
    if not good:
        return Cut(copy.deepcopy(model), "module", 0.0, frozenset(), {}, dropped)
    removed = frozenset().union(*good)
    made, form, error = attempt(model, units, removed, checks)
    positions = kept_positions(model, units, gone_of(units.roots, removed))
    changed = {why for label, why in units.classes.inexact.items() if label in removed}
    return Cut(made, form, error, removed, positions, dropped, tuple(sorted(changed)))


def recut(model: nn.Module, units: Units, positions: Mapping[str, Any], arrays: Arrays) -> Cut:
    """Cut a copy of ``model`` where an earlier cut of the same architecture left ``positions``.

    It is verified as that one was. Raises Unsupported when no units of this model leave these positions.
    """
    removed = removed_at(model, units, positions)
    gone = gone_of(units.roots, removed)
    if kept_positions(model, units, gone) != positions:
        raise Unsupported("the kept positions are not those of whole units of this model")
    made, form, error = attempt(model, units, removed, checked_on(units, arrays))
    return Cut(made, form, error, frozenset(removed), positions)


def checked_on(units: Units, arrays: Arrays) -> list[tuple[Tensor, ...]]:
    return [units.trace.inputs(shifted(arrays, rows), rows) for rows in CHECKED_ROWS]


def shifted(arrays: Arrays, rows: int) -> Arrays:
    """Other samples for another batch size, where there are others."""
    return {
        name: array[rows % max(len(array), 1) :] if len(array) > rows else array
        for name, array in arrays.items()
    }


def sift(
    model: nn.Module,
    units: Units,
    bundles: list[Collection[int]],
    checks: Sequence[tuple[Tensor, ...]],
    halvings: Iterator[int],
) -> tuple[list[Collection[int]], dict[int, str]]:
    """The bundles that can be removed together, and why others cannot; they are found by halving.

    When there are no ``halvings`` left, what fails as a whole stays as a whole.
    """
    if not bundles:
        return [], {}
    if not (why := refusal(model, units, bundles, checks)):
        return bundles, {}
    if len(bundles) == 1 or next(halvings, None) is None:
        return [], dict.fromkeys(frozenset().union(*bundles), why)
    middle = len(bundles) // 2
    left, dropped = sift(model, units, bundles[:middle], checks, halvings)
    right, more = sift(model, units, bundles[middle:], checks, halvings)
    dropped |= more
    if left and right and (why := refusal(model, units, [*left, *right], checks)):
        for bundle in right if len(right) <= len(left) else left:
            dropped |= dict.fromkeys(bundle, f"together with others: {why}")
        return (left if len(right) <= len(left) else right), dropped
    return [*left, *right], dropped


def refusal(
    model: nn.Module, units: Units, bundles: Sequence[Collection[int]], checks: Sequence[tuple[Tensor, ...]]
) -> str:
    """Why these bundles cannot be removed together; empty when they can."""
    try:
        attempt(model, units, frozenset().union(*bundles), checks)
    except KaruiError as error:
        return error.line
    return ""


def attempt(
    model: nn.Module, units: Units, removed: Collection[int], checks: Sequence[tuple[Tensor, ...]]
) -> tuple[nn.Module, str, float]:
    """The cut model, verified: the user's own class if its code allows it, else the rewritten graph."""
    gone = gone_of(units.roots, removed)
    with foreign(Unsupported, "the sizes that stay do not fit together"):
        changes = edits(units, gone)
    wanted = reference(model, units, gone, checks)
    try:
        with foreign(Unsupported, "the module does not run with smaller tensors"):
            made = cut_module(model, units, gone, changes)
            return made, "module", confirmed(made, model, units, gone, checks, wanted)
    except Unsupported:
        quietly = redirect_stderr(StringIO())  # torch.fx prints what it also raises
        with foreign(Unsupported, "the graph does not run with smaller tensors"), quietly:
            made = cut_graph(units, gone, changes)
            return made, "graph", confirmed(made, model, units, gone, checks, wanted)


def confirmed(
    made: nn.Module,
    model: nn.Module,
    units: Units,
    gone: Gone,
    checks: Sequence[tuple[Tensor, ...]],
    wanted: Sequence[Sequence[Tensor]],
) -> float:
    """As ``verified``; in float64 where float32 is too coarse to tell: some networks amplify its rounding."""
    try:
        return verified(made, units, checks, wanted)
    except Unsupported as coarse:
        if units.classes.inexact:
            raise
        fine = [tuple(t.double() if t.is_floating_point() else t for t in given) for given in checks]
        with foreign(Unsupported, coarse.what):
            twin, same = masked(model, units, gone).double(), private_copy(made).double()
            exact = [answers(twin, units.trace.signature, given) for given in fine]
            return verified(same, units, fine, exact, TOLERANCE_64)


def reference(
    model: nn.Module, units: Units, gone: Gone, checks: Sequence[tuple[Tensor, ...]]
) -> list[list[Tensor]]:
    """What the cut model has to answer."""
    if not units.classes.inexact:
        twin = masked(model, units, gone)
        return [answers(twin, units.trace.signature, given) for given in checks]
    graph = twin_of(units.trace.graph)
    zero_out(graph, units, gone)
    with over_what_stays(graph, units, gone), torch.no_grad():
        return [list(flat(graph(*given))) for given in checks]


def masked(model: nn.Module, units: Units, gone: Gone) -> nn.Module:
    """A copy with every stored number of the removed units set to zero."""
    twin = copy.deepcopy(model)
    for _, tensor, labels in labelled(twin, units):
        if not tensor.is_floating_point():
            continue
        for plane in labels.planes:
            tensor.data.masked_fill_(gone.at(plane).to(tensor.device), 0.0)
    return twin


@torch.no_grad()
def answers(model: nn.Module, signature: Signature, given: tuple[Tensor, ...]) -> list[Tensor]:
    return list(flat(Flat(model, signature)(*given)))


def verified(
    made: nn.Module,
    units: Units,
    checks: Sequence[tuple[Tensor, ...]],
    wanted: Sequence[Sequence[Tensor]],
    tolerance: float = TOLERANCE,
) -> float:
    """The largest relative difference; raises Unsupported when it is not rounding."""
    worst = 0.0
    for given, right in zip(checks, wanted):
        for mine, theirs in zip(answers(made, units.trace.signature, given), right, strict=True):
            if mine.shape != theirs.shape:
                raise Unsupported(f"the cut model answers in another shape: {tuple(mine.shape)}")
            worst = max(worst, relative(mine, theirs))
    if not worst <= tolerance:
        raise Unsupported(f"the cut model answers differently: {worst:.1e} of the largest answer")
    return worst


def relative(mine: Tensor, theirs: Tensor) -> float:
    """Largest difference over largest answer; infinite where an answer is no number, or another infinity."""
    if not theirs.is_floating_point():
        return 0.0 if torch.equal(mine, theirs) else float("inf")
    finite = theirs.isfinite()
    if mine.isnan().any() or not torch.equal(mine[~finite], theirs[~finite]):
        return float("inf")
    mine, theirs = mine[finite], theirs[finite]
    if not theirs.numel():
        return 0.0
    scale = max(float(theirs.abs().max()), 1e-12)
    return float((mine - theirs).abs().max()) / scale
