"""Rounding weights to a grid of few integers so that each layer's answers change least.

Layer after layer, on inputs from the model whose earlier layers are rounded already, towards what the
original answers. GPTQ: Frantar et al. 2022, arXiv:2210.17323; AdaRound: Nagel et al. 2020,
arXiv:2004.10568; both in the form of graph/ranges/rounding. The ranges that the weights were rounded on are
handed on to the INT8 runtimes, which then store these very integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from karui.errors import UsageError
from karui.graph.biases import give_biases, take_back
from karui.graph.consumers import tensor_at
from karui.graph.gram import Moments, centred, refit
from karui.graph.layerwise import (
    HELD_BYTES,
    Layer,
    find_layers,
    moments_at,
    moments_of,
    other,
    owner_of,
    samples,
)
from karui.graph.ranges import rounding
from karui.graph.ranges.observers import per_channel
from karui.graph.ranges.profiles import weight_bits
from karui.graph.ranges.table import Range, Table, signed
from karui.graph.sparse import Problem, problem_of, settled
from karui.graph.trace import ROOT, Trace, held_bytes, in_step, trace, twin_of
from karui.techniques import Applied, Given, Technique


@final
@dataclass(frozen=True)
class RoundWeights(Technique):
    """Weights stay float tensors, whose values lie on a symmetric grid of each output channel.

    method: nearest looks at no data. bits: 2 to 8; what INT8 kernels of the target take (7 or 8) if not set.
    scale: where the grid ends, at the least squared error of the weights or at their extremes. bias: whether
    layers without one are given one; it takes up by how much rounding moves the mean of an output. rounds:
    of AdaRound. samples: of the calibration data at most.
    """

    method: Literal["adaround", "gptq", "nearest"] = "adaround"
    bits: int | None = None
    scale: Literal["mse", "minmax"] = "mse"
    bias: bool = True
    rounds: int = 500
    samples: int = 512

    def apply(self, model: nn.Module, data: Given) -> Applied:
        if self.bits is None:
            return replace(self, bits=weight_bits(data.flags)).apply(model, data)
        self.check(data)
        given = give_biases(model) if self.learns and self.bias else []
        work = Rounding(self, trace(model, data.signature, data.inputs), data)
        with torch.no_grad():
            work.run()
        take_back(model, given)
        touched = tuple(sorted({owner_of(path) for path in work.ranges}))
        return Applied(model, touched, work.skipped, work.facts(), Table(work.ranges))

    def check(self, data: Given) -> None:
        """Raises UsageError for options out of range, or where data is missing."""
        if not 2 <= self.grid_bits <= 8:
            raise UsageError(f"round_weights:bits must lie between 2 and 8, got {self.bits}")
        for name, value in (("rounds", self.rounds), ("samples", self.samples)):
            if value < 1:
                raise UsageError(f"round_weights:{name} must be at least 1, got {value}")
        if self.learns and not len(next(iter(data.calibrate.values()), ())):
            raise UsageError(
                f"round_weights:method={self.method} needs calibration data",
                fix="give calibrate=..., or method=nearest",
            )

    @property
    def learns(self) -> bool:
        return self.method != "nearest"

    @property
    def grid_bits(self) -> int:
        assert self.bits is not None
        return self.bits


def fitted(problem: Problem) -> Tensor:
    """Float weights (groups, outputs, n) for these inputs; zeros stay zeros."""
    stay = problem.stored(problem.start) != 0
    if not bool(stay.all()):
        return settled(problem, problem.start, stay)
    return torch.stack([refit(problem.halves, group, part.T).T for group, part in enumerate(problem.start)])


class Rounding:
    """One application: the traced model, which is changed layer by layer, and the account of it."""

    def __init__(self, options: RoundWeights, traced: Trace, given: Given) -> None:
        graph = traced.graph
        self.options, self.graph = options, graph
        self.original = twin_of(graph) if options.learns else graph
        self.data = samples(traced, given.calibrate, options.samples) if options.learns else []
        self.grid = signed(options.grid_bits)
        self.layers, self.skipped = find_layers(graph)
        self.known: Mapping[str, Range] = given.ranges or {}
        self.ranges: dict[str, Range] = {}

    def run(self) -> None:
        small = self.options.learns and self.bytes() <= HELD_BYTES
        for at_once, some in groupby(self.layers, lambda layer: small and self.passes(layer)):
            if at_once:
                self.sweep(list(some))
            else:
                for layer in some:
                    self.round(layer)

    def bytes(self) -> int:
        """What a pass over all of the data in step holds, of the model and of the original."""
        return 2 * held_bytes(self.graph, self.data[0]) * len(self.data)

    def passes(self, layer: Layer) -> bool:
        """Whether a layer can be learned on the way of such a pass: it is called once, with its own bias."""
        once = len(layer.nodes) == 1 and not other(layer, layer.nodes[0])
        return once and layer.unfolds and not self.settled(layer)

    def settled(self, layer: Layer) -> bool:
        return layer.path in self.known and self.known[layer.path].learned

    def sweep(self, layers: Sequence[Layer]) -> None:
        """Learn layers in one pass over all of the data; each is computed again once it is rounded."""
        left = {layer.nodes[0].name: layer for layer in layers}
        for now, wanted in zip(*(in_step(graph, self.data) for graph in (self.graph, self.original))):
            node = now[0][0]
            layer = left.pop(node.name, None)
            if layer is None:
                continue
            pairs = [(args[0], y) for (_, args, _, _), (*_, y) in zip(now, wanted)]
            self.learn(layer, moments_at(layer, node, pairs))
            for _, args, kwargs, value in now:
                value.copy_(node.target(*args, **kwargs))
            if not left:
                break

    def round(self, layer: Layer) -> None:
        if self.settled(layer):
            self.skipped[layer.owner] = "its weight was rounded or trained for a grid already"
        elif self.options.learns and layer.unfolds:
            self.learn(layer, moments_of(layer, self.graph, self.original, self.data))
        else:
            self.to_nearest(layer)

    def to_nearest(self, layer: Layer) -> None:
        weight = tensor_at(self.graph, layer.names[0])
        scale = self.settle(layer, weight)
        shape = [-1 if i == layer.axis else 1 for i in range(weight.ndim)]
        weight.copy_(rounding.nearest(weight, scale.reshape(shape), self.grid) * scale.reshape(shape))

    def learn(self, layer: Layer, halves: tuple[Moments, Moments]) -> None:
        """Fit the weights to the inputs as they now are, and round them."""
        weight = tensor_at(self.graph, layer.names[0])
        bias = None if layer.bias is None else tensor_at(self.graph, layer.bias)
        wanted = fitted(problem_of(self.graph, layer, halves))
        scale = self.settle(layer, wanted[..., : weight[0].numel()].reshape(weight.shape).float())
        q, moved = self.rounded(halves[0].plus(halves[1]), wanted, scale)
        weight.copy_((q.flatten(0, 1).float() * scale.unsqueeze(1)).reshape(weight.shape))
        if bias is not None:
            bias.copy_(moved.flatten())

    def settle(self, layer: Layer, weight: Tensor) -> Tensor:
        """Keep the weight's range, and give the scale that a runtime will compute from it."""
        low, high = per_channel(weight, layer.axis, self.options.scale, self.grid)
        high = torch.maximum(-low, high)
        one = Range(-high, high, layer.axis, self.options.grid_bits, "weight", learned=True)
        self.ranges |= {name.removeprefix(ROOT): one for name in layer.names}
        return one.on(self.grid)[0]

    def rounded(self, moments: Moments, wanted: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Whole numbers, and the biases: these are free, so that of errors only the spread counts.

        wanted: (groups, outputs, n), n with the bias where there is one.
        """
        H, steps = moments.H, scale.double().reshape(*wanted.shape[:2], 1)
        if not moments.ones:
            return self.choose(wanted, steps, H), wanted.new_zeros(0)
        weights, mean = wanted[..., :-1], H[:, :-1, -1:] / H[:, -1:, -1:]
        q = self.choose(weights, steps, centred(H))
        return q, wanted[..., -1] - ((q * steps - weights) @ mean).squeeze(-1)

    def choose(self, weights: Tensor, scale: Tensor, H: Tensor) -> Tensor:
        if self.options.method == "adaround":
            return rounding.adaround(weights, scale, self.grid, H, self.options.rounds)
        return torch.stack(
            [rounding.gptq(*group[:2], self.grid, group[2]) for group in zip(weights, scale, H)]
        )

    def facts(self) -> dict[str, Any]:
        return {"method": self.options.method, "bits": self.options.grid_bits, "weights": len(self.ranges)}
