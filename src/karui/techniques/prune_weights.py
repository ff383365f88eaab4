"""Single weights set to zero, anywhere or in a pattern: smaller files, and faster where kernels skip zeros.

No training and no labels: the weights that stay take over by least squares on calibration data
(graph/sparse), each layer gets as many zeros as cost the answers least (graph/zero_shares), and the
statistics of batch norms are estimated again. Zeros are plain numbers in plain parameters. Hassibi & Stork
1993; Frantar & Alistarh 2022, arXiv:2208.11580.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from karui.errors import UsageError
from karui.graph.compensate import damage, held_out
from karui.graph.consumers import tensor_at
from karui.graph.importance import gradients
from karui.graph.layerwise import moments_of, owner_of, samples
from karui.graph.patterns import cells, kept, misfit, of_cells, parse_pattern
from karui.graph.renorm import reestimate
from karui.graph.sparse import (
    BETWEEN,
    QUICK,
    ROUNDS,
    Problem,
    Weight,
    by_costs,
    find_weights,
    problem_of,
    settled,
    share_of_zeros,
    store,
)
from karui.graph.trace import Trace, trace, twin_of
from karui.graph.zero_shares import LEVELS, Curve, curve, drawn, least_damage
from karui.techniques import Applied, Given, Technique

HELD = 384  # calibration samples on which damage is measured
USUAL = 0.8
Aliases = Mapping[str, Sequence[str]]


@final
@dataclass(frozen=True)
class PruneWeights(Technique):
    """How many zeros, where, and how they are chosen; the default makes 80 % of all weights zero.

    sparsity: share of zeros afterwards, in all weights together or, with ``scope=layer``, in each.
    amount: instead, how much of what is not zero yet goes: a share below 1, or a number of weights.
    pattern: any, 2:4 (n of m), 4x1 (blocks of outputs x inputs), kernel, row or column (graph/patterns).
    importance: obs (what the layer's answers lose after the others have taken over), l1, l2, taylor or
        random (``seed``); they differ from each other in blocks and in what is told apart between layers.
    layers: only these, protect: all but these; modules or weights, ``*`` stands for anything.
    compensate: let the weights that stay take over. samples: calibration samples used at most.
    """

    sparsity: float | None = None
    amount: float | None = None
    pattern: str = "any"
    scope: Literal["global", "layer"] = "global"
    importance: Literal["obs", "l1", "l2", "taylor", "random"] = "obs"
    layers: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    compensate: bool = True
    samples: int = 1024
    seed: int = 0

    ZEROES = True

    def __post_init__(self) -> None:
        """Raises UsageError for options that contradict each other or are out of range."""
        pattern = parse_pattern(self.pattern)
        goals = [name for name in ("sparsity", "amount") if getattr(self, name) is not None]
        if len(goals) > 1 or (goals and pattern.m):
            also = f"pattern={self.pattern} says it itself" if pattern.m else " and ".join(goals)
            raise UsageError(f"prune_weights has more than one goal: {also}", fix="give one of them")
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise UsageError(f"prune_weights:sparsity must lie between 0 and 1, got {self.sparsity}")
        if self.amount is not None and (self.amount <= 0 or (self.amount >= 1 and self.amount % 1)):
            raise UsageError(f"prune_weights:amount is a share below 1 or a whole number, got {self.amount}")
        if self.samples < 1:
            raise UsageError(f"prune_weights:samples must be at least 1, got {self.samples}")

    def apply(self, model: nn.Module, data: Given) -> Applied:
        self.check(data)
        with torch.no_grad():
            return Pruning(self, trace(model, data.signature, data.inputs), data, aliases(model)).run(model)

    def check(self, data: Given) -> None:
        if self.learns and not len(next(iter(data.calibrate.values()), ())):
            raise UsageError(
                "prune_weights needs calibration data",
                fix="give calibrate=..., or importance=l1,compensate=false",
            )

    @property
    def learns(self) -> bool:
        return self.compensate or self.importance in ("obs", "taylor")


class Pruning:
    """One application: the traced model, whose weights change in place, and the account of it."""

    def __init__(self, options: PruneWeights, traced: Trace, given: Given, paths: Aliases) -> None:
        self.options, self.pattern, self.graph = options, parse_pattern(options.pattern), traced.graph
        self.paths = paths
        found, self.skipped = find_weights(self.graph)
        self.weights = self.chosen(found)
        self.original = twin_of(self.graph) if options.learns else self.graph
        self.data = samples(traced, given.calibrate, options.samples) if options.learns else []
        size = len(self.data[0][0]) if self.data else 1
        self.held = held_out(self.original, self.data[: -(-HELD // size)])
        self.sensitivity: dict[str, str] = {}
        self.refitted: list[str] = []

    def chosen(self, found: Sequence[Weight]) -> list[Weight]:
        """The weights that may get zeros; the others with the reason why not."""
        self.refuse_unknown(found)
        stay = []
        for one in found:
            shape = tuple(tensor_at(self.graph, one.names[0]).shape)
            if self.named(one, self.options.protect) or not self.named(one, self.options.layers or ("*",)):
                self.skipped[one.owner] = "it is protected"
            elif reason := misfit(shape, one.axis, self.pattern):
                self.skipped[one.owner] = reason
            else:
                stay.append(one)
        return stay

    def refuse_unknown(self, found: Sequence[Weight]) -> None:
        for option in ("layers", "protect"):
            for name in getattr(self.options, option):
                if not any(self.named(one, (name,)) for one in found):
                    known = ", ".join(one.owner for one in found[:8])
                    raise UsageError(
                        f"prune_weights:{option} names {name!r}, which has no such weight",
                        fix=f"among others: {known}",
                    )

    def named(self, one: Weight, names: Sequence[str]) -> bool:
        parts = [part for path in self.all_paths(one) for part in (path, owner_of(path))]
        return any(fnmatch.fnmatchcase(part, name) for name in names for part in parts)

    def all_paths(self, one: Weight) -> Sequence[str]:
        return self.paths.get(one.path, (one.path,))

    def run(self, model: nn.Module) -> Applied:
        if not self.weights:
            return Applied(model, (), self.skipped or {"the model": "it has no weight that may have zeros"})
        before = share_of_zeros(self.graph, self.weights)
        shares = self.shares(before)
        for one in self.weights:
            if shares[one.path] > before[one.path]:
                problem = self.problem(one, self.graph)
                self.prune(one, problem, 1 - shares[one.path])
                self.refitted += [one.path] * (problem is not None and self.options.compensate)
        if self.options.compensate and reestimate(self.graph, self.data, self.held):
            self.refitted.append("batch norm statistics")
        after = share_of_zeros(self.graph, self.weights)
        changed = [one for one in self.weights if after[one.path] > before[one.path]]
        touched = {owner_of(path) for one in changed for path in self.all_paths(one)}
        return Applied(model, tuple(sorted(touched)), self.skipped, self.facts(after))

    def shares(self, before: Mapping[str, float]) -> Mapping[str, float]:
        """The share of zeros that each weight is to have."""
        if self.pattern.m:
            return dict.fromkeys(before, self.pattern.zeros)
        if self.options.scope == "layer":
            return {one.path: self.goal([one], before) for one in self.weights}
        goal = self.goal(self.weights, before)
        if self.options.importance != "obs":
            return self.above_one_threshold(goal)
        if goal > LEVELS[-1]:
            raise UsageError(
                f"prune_weights:sparsity over all layers is {LEVELS[-1]} at most, got {goal:g}",
                fix="scope=layer",
            )
        return least_damage([self.curve(one, before[one.path], goal) for one in self.weights], goal)

    def goal(self, weights: Sequence[Weight], before: Mapping[str, float]) -> float:
        """The share of zeros asked for in these weights together."""
        sizes = {one.path: tensor_at(self.graph, one.names[0]).numel() for one in weights}
        total = sum(sizes.values())
        zeros = sum(before[path] * size for path, size in sizes.items())
        amount = self.options.amount
        if amount is None:
            return USUAL if self.options.sparsity is None else self.options.sparsity
        going = amount * (total - zeros) if amount < 1 else amount
        if zeros + going > total:
            raise UsageError(
                f"prune_weights:amount={amount:g} is more than there are weights left",
                why=f"{total - zeros:g} are not zero",
            )
        return (zeros + going) / max(total, 1)

    def above_one_threshold(self, goal: float) -> Mapping[str, float]:
        """Shares of zeros when weights of all layers are ranked together."""
        each = {one.path: self.ranks(one).flatten() for one in self.weights}
        pooled = torch.cat(list(each.values()))
        count = round(goal * len(pooled))
        threshold = pooled.kthvalue(count).values if count else pooled.min() - 1
        return {path: float((values <= threshold).double().mean()) for path, values in each.items()}

    def ranks(self, one: Weight) -> Tensor:
        """What is compared between layers: scores, within a cell all alike."""
        scores = self.scores(one)
        numbers = cells(tuple(scores.shape), one.axis, self.pattern)
        return of_cells(scores, numbers)[numbers]

    def scores(self, one: Weight) -> Tensor:
        """How much each weight matters, by itself; those that are zero matter least."""
        weight = tensor_at(self.graph, one.names[0]).detach().double()
        kind = self.options.importance
        if kind == "random":
            drawn_ = torch.Generator().manual_seed(self.options.seed)
            found = torch.rand(weight.shape, generator=drawn_, dtype=torch.float64)
            return torch.where(weight == 0, -1.0, found)
        if kind == "taylor":
            slope = gradients(self.graph, [tensor_at(self.graph, one.names[0])], self.data)[0]
            return (weight * slope).abs()
        return weight.abs() if kind == "l1" else weight.square()

    def problem(self, one: Weight, now: GraphModule) -> Problem | None:
        """None where the others cannot take over, or need not."""
        needed = self.options.compensate or self.options.importance == "obs"
        if one.layer is None or not needed:
            return None
        return problem_of(self.graph, one.layer, moments_of(one.layer, now, self.original, self.data))

    def prune(self, one: Weight, problem: Problem | None, share: float, *, quick: bool = False) -> None:
        """Leave ``share`` of a weight; it changes in place."""
        if problem is None or one.layer is None:
            stay = kept(self.scores(one), one.axis, self.pattern, share)
            tensor_at(self.graph, one.names[0]).data.masked_fill_(~stay, 0.0)
            return
        rounds = 1 if not self.options.compensate else QUICK if quick else ROUNDS
        if self.options.importance == "obs":
            weights, stay = by_costs(problem, self.pattern, share, rounds)
        else:
            weights, stay = problem.start, kept(self.scores(one), one.axis, self.pattern, share)
        if not self.options.compensate:
            fitted = weights.masked_fill(~problem.support(stay), 0.0)
        else:
            fitted = (
                problem.fitted(weights, stay, steps=BETWEEN) if quick else settled(problem, weights, stay)
            )
        store(self.graph, one.layer, problem, fitted)

    def curve(self, one: Weight, now: float, goal: float) -> Curve:
        """Damage to the answers by zeros in this weight alone."""
        problem = self.problem(one, self.original)
        names = [one.names[0], *([one.layer.bias] if one.layer and one.layer.bias else [])]
        before = {name: tensor_at(self.graph, name).detach().clone() for name in names}

        def damage_at(zeros: float) -> float:
            self.prune(one, problem, 1 - zeros, quick=True)
            found = damage(self.graph, self.held)
            for name, tensor in before.items():
                tensor_at(self.graph, name).data.copy_(tensor)
            return found

        measured = curve(one.path, before[one.names[0]].numel(), now, goal, damage_at)
        self.sensitivity[one.path] = drawn(measured)
        return measured

    def facts(self, after: Mapping[str, float]) -> dict[str, Any]:
        sizes = {one.path: tensor_at(self.graph, one.names[0]).numel() for one in self.weights}
        left = {path: size - round(after[path] * size) for path, size in sizes.items()}
        total = max(sum(sizes.values()), 1)
        return {
            "pattern": self.pattern.text,
            "zeros": 1 - sum(left.values()) / total,
            "kept": {path: f"{left[path]} of {size}" for path, size in sizes.items()},
            "refitted": self.refitted,
            "sensitivity": self.sensitivity,
            "damage": damage(self.graph, self.held) if self.data else None,
        }


def aliases(model: nn.Module) -> Aliases:
    """All paths of each parameter, by any of them: tied weights have several."""
    found: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(path)
    return {path: paths for paths in found.values() for path in paths}
