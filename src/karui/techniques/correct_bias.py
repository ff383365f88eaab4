"""Correcting biases for the shift that rounding will give to the mean of each output channel.

Layer after layer, the mean that the rounded model gives on calibration data, with the layers before
corrected already, is brought back to that of the model in float. Nagel et al. 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.2 and appendix D (the
empirical form).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from karui.errors import UsageError
from karui.graph.biases import give_biases, take_back
from karui.graph.consumers import tensor_at
from karui.graph.flow import output_axis
from karui.graph.layerwise import HELD_BYTES, Layer, find_layers, samples
from karui.graph.ranges.calibrate import calibrate
from karui.graph.ranges.insert import OP, insert
from karui.graph.ranges.places import Profile
from karui.graph.ranges.profiles import weight_bits
from karui.graph.ranges.table import Range, Table, signed
from karui.graph.spread import Spread, spread_of, spreads
from karui.graph.trace import held_bytes, in_step, trace, twin_of
from karui.numerics import Numerics
from karui.techniques import Applied, Given, Technique

SMALLEST = 1e-7  # shift, as a share of the channel's root mean square, that is none


@final
@dataclass(frozen=True)
class CorrectBias(Technique):
    """The weights stay as they are; they are assumed to be rounded to nearest when the model is built.

    bits: of the weights, 2 to 8; what INT8 kernels of the target take (7 or 8) when not given. activations:
    whether what layers read is rounded, to 8 bits, as well. samples: of the calibration data at most.
    """

    bits: int | None = None
    activations: bool = True
    samples: int = 512

    def apply(self, model: nn.Module, data: Given) -> Applied:
        if self.bits is None:
            return replace(self, bits=weight_bits(data.flags)).apply(model, data)
        self.check(data)
        given = give_biases(model)
        traced = trace(model, data.signature, data.inputs)
        parts = samples(traced, data.calibrate, self.samples)
        with torch.no_grad():
            work = Correcting(self, traced.graph, parts, data.ranges)
            work.run()
        take_back(model, given)
        return Applied(model, tuple(sorted(work.moved)), work.skipped, work.facts())

    def check(self, data: Given) -> None:
        """Raises UsageError for options out of range, or where there is no data."""
        if not 2 <= self.grid_bits <= 8:
            raise UsageError(f"correct_bias:bits must lie between 2 and 8, got {self.bits}")
        if self.samples < 1:
            raise UsageError(f"correct_bias:samples must be at least 1, got {self.samples}")
        if not len(next(iter(data.calibrate.values()), ())):
            raise UsageError("correct_bias needs calibration data", fix="give calibrate=...")

    @property
    def grid_bits(self) -> int:
        assert self.bits is not None
        return self.bits


class Correcting:
    """One application: the model in float, and as it will be rounded; both have the biases in common."""

    def __init__(
        self,
        options: CorrectBias,
        graph: GraphModule,
        data: list[tuple[Tensor, ...]],
        known: Mapping[str, Range] | None,
    ) -> None:
        self.options, self.graph, self.data = options, graph, data
        self.layers, self.skipped = find_layers(graph)
        self.rounded = twin_of(graph)
        self.round(known or {})
        self.moved: dict[str, float] = {}

    def round(self, known: Mapping[str, Range]) -> None:
        """Put ``fake_quant`` where an INT8 runtime rounds."""
        kept = {key: one for key, one in known.items() if one.role == "weight"}
        table = calibrate(self.rounded, self.data, known=Table(kept))
        profile = Profile(weights=signed(self.options.grid_bits), products=False)
        insert(self.rounded, table, profile, Numerics("int8"))
        if not self.options.activations:
            pass_on(self.rounded)

    def run(self) -> None:
        axes = {node.name: output_axis(node) for layer in self.layers for node in layer.nodes}
        wanted = spreads(self.graph, self.data, axes)  # before any bias changes
        without = "it has no bias of its own, and no place for one"
        self.skipped |= {layer.owner: without for layer in self.layers if layer.bias is None}
        small = held_bytes(self.rounded, self.data[0]) * len(self.data) <= HELD_BYTES
        ready = [layer for layer in self.layers if layer.bias is not None]
        for at_once, some in groupby(ready, lambda layer: small and len(layer.nodes) == 1):
            if at_once:
                self.sweep(list(some), wanted)
            else:
                for layer in some:
                    self.correct(layer, wanted)

    def sweep(self, layers: Sequence[Layer], wanted: Mapping[str, Spread]) -> None:
        """Correct layers that are each called once, in one pass over all of the data in step."""
        left = {layer.nodes[0].name: layer for layer in layers}
        for steps in in_step(self.rounded, self.data):
            node = steps[0][0]
            if node.name not in left:
                continue
            axis = output_axis(node)
            found = reduce(Spread.plus, [spread_of(value, axis) for *_, value in steps])
            shift = self.move(left.pop(node.name), [wanted[node.name]], [found])
            for *_, value in steps:
                value.add_(shift.reshape([-1 if i == axis % value.ndim else 1 for i in range(value.ndim)]))
            if not left:
                break

    def correct(self, layer: Layer, wanted: Mapping[str, Spread]) -> None:
        found = spreads(self.rounded, self.data, {node.name: output_axis(node) for node in layer.nodes})
        self.move(layer, [wanted[name] for name in found], list(found.values()))

    def move(self, layer: Layer, wanted: Sequence[Spread], found: Sequence[Spread]) -> Tensor:
        """Shift the layer's bias, in both models; tells by how much."""
        assert layer.bias is not None
        shift = torch.stack([right.mean - now.mean for right, now in zip(wanted, found)]).mean(0)
        size = torch.stack([one.power for one in wanted]).mean(0).sqrt()
        share = float((shift.abs() / size.clamp(min=1e-12)).amax())
        if share <= SMALLEST:
            return torch.zeros_like(shift).float()
        for graph in (self.graph, self.rounded):
            tensor_at(graph, layer.bias).add_(shift.float())
        self.moved[layer.owner] = share
        return shift.float()

    def facts(self) -> dict[str, Any]:
        return {"bits": self.options.grid_bits, "corrected": len(self.moved), "largest_shift": self.moved}


def pass_on(graph: GraphModule) -> None:
    """Take ``fake_quant`` away from computed tensors."""
    for node in list(graph.graph.nodes):
        if node.target is OP and node.args[0].op != "get_attr":
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
