"""Equalizing the weights of two layers in a row, channel by channel, so that one grid fits all of them.

What leaves a layer divided by a factor and enters the next one multiplied by it changes no answer, when
only operations stand between that carry positive factors through. Then biases: what nearly every input
passes over anyway moves on into the next layer's bias. Nagel et al. 2019, "Data-Free Quantization Through
Weight Equalization and Bias Correction", arXiv:1906.04721, sections 4.1 and 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.fx import Node

from karui.errors import UsageError
from karui.graph.biases import give_biases, take_back
from karui.graph.consumers import tensor_at
from karui.graph.flow import (
    HOMOGENEOUS,
    RELUS,
    Flow,
    Flows,
    input_reach,
    output_axis,
    output_reach,
    scale_inputs,
    scale_outputs,
    why_not,
)
from karui.graph.layerwise import Layer, samples
from karui.graph.ranges.table import Range
from karui.graph.spread import spreads
from karui.graph.trace import Trace, argument, packet, trace
from karui.techniques import Applied, Given, Technique

aten = torch.ops.aten
CLOSE = 1e-3  # factors this near to one end the rounds
ROUNDS = 20
SIGMAS = 3.0  # below the mean: nearly all values are larger


@final
@dataclass(frozen=True)
class Equalize(Technique):
    """Exact to float rounding, but for the biases that move on.

    absorb: move biases on; a value of more than three standard deviations below its mean then comes out
    wrong. samples: of the calibration data at most, for means and deviations.
    """

    absorb: bool = True
    samples: int = 512

    def apply(self, model: nn.Module, data: Given) -> Applied:
        if self.samples < 1:
            raise UsageError(f"equalize:samples must be at least 1, got {self.samples}")
        given = give_biases(model) if self.absorb else []
        work = Equalizing(trace(model, data.signature, data.inputs), data)
        with torch.no_grad():
            rounds = work.equalize()
            moved = work.absorb(self.samples) if self.absorb else 0
        take_back(model, given)
        touched = {layer.owner for pair in work.pairs for layer in (pair.first, pair.second)}
        facts = {"pairs": len(work.pairs), "rounds": rounds, "absorbed": moved}
        return Applied(model, tuple(sorted(touched)), work.skipped, facts)


@dataclass(frozen=True)
class Pair:
    """Two layers; ``channels``: of the first, for each input of the second."""

    first: Layer
    second: Layer
    channels: Tensor
    flow: Flow

    @property
    def absorbs(self) -> bool:
        """Whether a bias can move on: over a ReLU, into a layer with a bias that adds no zeros at its rim."""
        reader = self.second.nodes[0]
        padding = argument(reader, 4, "padding", 0) if len(reader.args) > 3 else 0
        rim = padding != "valid" and any([padding] if isinstance(padding, (int, str)) else padding)
        between = [packet(node) for node in self.flow.on_the_way]
        own = self.first.bias is not None and self.second.bias is not None
        return own and not rim and is_plain(reader) and any(op in RELUS for op in between)


def is_plain(reader: Node) -> bool:
    """Whether every output is a sum over all of the kernel."""
    return packet(reader) in (aten.linear, aten.conv1d, aten.conv2d, aten.conv3d)


class Equalizing:
    """One application: the traced model, its pairs, and why other layers are in none."""

    def __init__(self, traced: Trace, given: Given) -> None:
        self.traced, self.graph, self.given = traced, traced.graph, given
        flows = Flows(self.graph, traced.example)
        self.skipped = dict(flows.skipped)
        known: Mapping[str, Range] = given.ranges or {}
        ready: dict[Node, Layer] = {}
        for node, layer in flows.by_node.items():
            if why := why_not(layer, known):
                self.skipped[layer.owner] = why
            else:
                ready[node] = layer
        found, reasons = flows.follow({node: output_axis(node) for node in ready}, HOMOGENEOUS)
        self.skipped |= {ready[node].owner: why for node, why in reasons.items()}
        self.pairs = [pair for flow in found if (pair := self.pair(ready, flow)) is not None]

    def pair(self, ready: Mapping[Node, Layer], flow: Flow) -> Pair | None:
        first = ready[flow.source]
        second = flow.readers[0].layer
        if len(flow.readers) > 1:
            self.skipped[first.owner] = f"{len(flow.readers)} layers read it"
        elif second.nodes[0] not in ready:
            self.skipped[first.owner] = f"{second.owner} reads it, which must stay as it is"
        else:
            return Pair(first, second, flow.readers[0].channels, flow)
        return None

    def equalize(self) -> int:
        """Pair after pair, again and again: a layer in the middle of a chain is in two. Gives the rounds."""
        for done in range(1, ROUNDS + 1):
            if all([self.balance(pair) for pair in self.pairs]):
                return done
        return ROUNDS

    def balance(self, pair: Pair) -> bool:
        """Give each channel the same reach on both sides; True where it nearly had."""
        before = output_reach(tensor_at(self.graph, pair.first.names[0]), pair.first)
        each = input_reach(tensor_at(self.graph, pair.second.names[0]), pair.second)
        after = torch.zeros_like(before).scatter_reduce_(0, pair.channels, each, "amax")
        factors = torch.where((before > 0) & (after > 0), (before / after).sqrt(), 1.0)
        scale_outputs(self.graph, pair.first, 1 / factors)
        scale_inputs(self.graph, pair.second, factors[pair.channels])
        return bool(((factors - 1).abs() < CLOSE).all())

    def absorb(self, most: int) -> int:
        """Gives the number of channels whose bias moved on, in part."""
        pairs = [pair for pair in self.pairs if pair.absorbs]
        data = samples(self.traced, self.given.calibrate, most) if pairs and self.given.calibrate else []
        if not data:
            return 0
        low = lowest(self.traced, [pair.flow.source for pair in pairs], data)
        for pair, amount in zip(pairs, low):
            self.move(pair, amount)
        return sum(int((amount > 0).sum()) for amount in low)

    def move(self, pair: Pair, amount: Tensor) -> None:
        assert pair.first.bias is not None and pair.second.bias is not None
        weight = tensor_at(self.graph, pair.second.names[0])
        groups = len(pair.channels) // weight.shape[1]
        entering = amount[pair.channels].reshape(groups, 1, -1)
        sums = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        taken = (sums.reshape(groups, -1, weight.shape[1]) * entering).sum(2).reshape(-1)
        tensor_at(self.graph, pair.first.bias).sub_(amount)
        tensor_at(self.graph, pair.second.bias).add_(taken)


def lowest(traced: Trace, nodes: Sequence[Node], data: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Three deviations below the mean of each channel of the nodes, where that is positive."""
    found = spreads(traced.graph, data, {node.name: output_axis(node) for node in nodes})
    each = [found[node.name] for node in nodes]
    return [(one.mean - SIGMAS * one.deviation).clamp(min=0).float() for one in each]
