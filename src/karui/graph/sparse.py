"""Zeros in weights: which weights go, and what the others become, one layer after the other.

A layer's problem is in the second moments of its inputs (graph/gram). Weights go in rounds, those first
whose removal costs the layer's answers least after the others have taken over, w^2 / [H^-1] (Hassibi & Stork
1993; Frantar & Alistarh 2023, SparseGPT, arXiv:2301.00774); after each round the others are fitted again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from karui.graph.consumers import tensor_at
from karui.graph.gram import RIDGES, STEPS, Moments, inverse, loss, on_support
from karui.graph.layerwise import Layer, find_layers, owner_of
from karui.graph.patterns import Pattern, kept
from karui.graph.trace import ROOT, packet
from karui.graph.units.recurrent import GATES

ROUNDS = 6  # in which weights go, ever fewer at a time
QUICK = 2  # the same where damage is only estimated
BETWEEN = 12  # steps of conjugate gradients between two rounds
RIDGE = 1e-3


@dataclass(frozen=True)
class Weight:
    """A stored weight that may have zeros.

    names: its paths in the graph (tied weights have several). axis: that of the outputs. layer: None for
    what the others cannot take over by least squares: recurrent and embedded weights.
    """

    names: tuple[str, ...]
    axis: int
    layer: Layer | None

    @property
    def path(self) -> str:
        """In the user's model."""
        return self.names[0].removeprefix(ROOT)

    @property
    def owner(self) -> str:
        """The module that holds it."""
        return owner_of(self.path)


def find_weights(graph: GraphModule) -> tuple[list[Weight], dict[str, str]]:
    """Of layers in the order in which they are computed, then of recurrent layers; and what is left out."""
    layers, reasons = find_layers(graph)
    found = [Weight(one.names, one.axis, one if one.unfolds else None) for one in layers]
    return [*found, *recurrent(graph)], reasons


def recurrent(graph: GraphModule) -> list[Weight]:
    """Matrices of LSTM, GRU and plain RNN layers."""
    found: dict[int, list[str]] = {}
    for node in graph.graph.nodes:
        for part in weights_of(node) if packet(node) in GATES else ():
            tensor = tensor_at(graph, str(part.target))
            names = found.setdefault(id(tensor), [])
            if tensor.ndim == 2 and str(part.target) not in names:
                names.append(str(part.target))
    return [Weight(tuple(names), 0, None) for names in found.values() if names]


def weights_of(node: Node) -> list[Node]:
    parts: Sequence[object] = node.args[2]  # type: ignore[assignment]
    return [part for part in parts if isinstance(part, Node) and part.op == "get_attr"]


@dataclass(frozen=True)
class Problem:
    """One layer: what its outputs ought to be, as second moments of two halves of the data and of the whole.

    start: the weights so far, (groups, outputs, n) in float64, n with the bias where there is one; shape:
    that of the stored weight, whose outputs come first.
    """

    halves: tuple[Moments, Moments]
    whole: Moments
    start: Tensor
    shape: torch.Size

    @property
    def columns(self) -> int:
        """Inputs of one output, without the bias."""
        return self.start.shape[2] - self.whole.ones

    @cached_property
    def spread(self) -> Tensor:
        """diag(H^-1): (groups, 1, n). A weight's square over it is what its removal costs."""
        return torch.stack([inverse(part, RIDGE).diagonal() for part in self.whole.H]).unsqueeze(1)

    def stored(self, weights: Tensor) -> Tensor:
        """Without the bias, in the shape of the stored weight."""
        return weights[..., : self.columns].reshape(self.shape)

    def support(self, stay: Tensor) -> Tensor:
        """The same as columns of each output; a bias always stays."""
        columns = stay.reshape(*self.start.shape[:2], -1)
        ones = columns.new_ones(*columns.shape[:2], int(self.whole.ones))
        return torch.cat([columns, ones], 2)

    def fitted(
        self, weights: Tensor, stay: Tensor, ridge: float = RIDGE, steps: int = STEPS, half: int | None = None
    ) -> Tensor:
        """Least squares on what stays, from these weights; on one half of the data, or the whole."""
        moments = self.whole if half is None else self.halves[half]
        assert moments.targets is not None
        parts = zip(moments.H, moments.targets, weights, self.support(stay))
        return torch.stack([on_support(*part, ridge=ridge, steps=steps) for part in parts])

    def lost(self, weights: Tensor, half: int) -> float:
        """The squared error on one half, up to a constant."""
        moments = self.halves[half]
        assert moments.targets is not None
        return sum(loss(H, targets, part.T) for H, targets, part in zip(moments.H, moments.targets, weights))


def problem_of(graph: GraphModule, layer: Layer, halves: tuple[Moments, Moments]) -> Problem:
    weight = tensor_at(graph, layer.names[0]).detach()
    start = weight.double().flatten(1)
    if layer.bias is not None:
        start = torch.cat([start, tensor_at(graph, layer.bias).detach().double().unsqueeze(1)], 1)
    start = start.reshape(layer.groups, -1, start.shape[1])
    return Problem(halves, halves[0].plus(halves[1]), start, weight.shape)


def by_costs(problem: Problem, pattern: Pattern, share: float, rounds: int) -> tuple[Tensor, Tensor]:
    """Weights (groups, outputs, n) of which ``share`` stay, fitted between rounds, and which (as stored).

    What is zero at the start stays zero.
    """
    weights, stay = problem.start, problem.stored(problem.start) != 0
    for number in range(1, rounds + 1):
        left = 1 - (1 - share) * (1 - (1 - number / rounds) ** 3)
        costs = problem.stored(weights.square() / problem.spread)
        stay = stay & kept(costs, 0, pattern, left)
        if number < rounds:
            weights = problem.fitted(weights, stay, steps=BETWEEN)
    return weights, stay


def settled(problem: Problem, weights: Tensor, stay: Tensor) -> Tensor:
    """The last fit, with the ridge that serves the other half of the data best."""
    if not all(half.rows for half in problem.halves):
        return problem.fitted(weights, stay)

    def across(ridge: float) -> float:
        fits = [problem.fitted(weights, stay, ridge, BETWEEN, half) for half in (0, 1)]
        return sum(problem.lost(fit, 1 - half) for half, fit in enumerate(fits))

    return problem.fitted(weights, stay, min(RIDGES, key=across))


def store(graph: GraphModule, layer: Layer, problem: Problem, weights: Tensor) -> None:
    """Put weights, and the bias, into the graph, and so into the model."""
    tensor_at(graph, layer.names[0]).data.copy_(problem.stored(weights) + 0.0)  # no -0.0
    if layer.bias is not None:
        tensor_at(graph, layer.bias).data.copy_(weights[..., -1].flatten())


def share_of_zeros(graph: GraphModule, weights: Sequence[Weight]) -> Mapping[str, float]:
    """Of each weight, by its path."""
    tensors = {one.path: tensor_at(graph, one.names[0]) for one in weights}
    return {path: float((tensor == 0).double().mean()) for path, tensor in tensors.items()}
