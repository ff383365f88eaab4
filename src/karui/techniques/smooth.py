"""Moving outliers of activations into weights: of some channels a norm gives less and its readers take more.

A layer that is to run in INT8 reads all channels on one grid, which the largest channel sets; its weights
have a grid for each output. SmoothQuant: Xiao et al. 2022, arXiv:2211.10438.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import Node

from karui.errors import UsageError
from karui.graph.consumers import tensor_at
from karui.graph.flow import (
    HOMOGENEOUS,
    KEPT,
    RELUS,
    Flow,
    Flows,
    input_reach,
    output_axis,
    scale_inputs,
    scale_outputs,
    why_not,
)
from karui.graph.fold import is_own
from karui.graph.layerwise import Layer, samples
from karui.graph.ranges.table import Range
from karui.graph.spread import Spread, spreads
from karui.graph.trace import argument, module_of, packet, trace
from karui.techniques import Applied, Given, Technique

aten = torch.ops.aten
LAYER_NORMS = {aten.layer_norm: (2, 3), aten.rms_norm: (2, None)}  # where weight and bias stand
SMALLEST = 1e-5  # reach of a channel; below it there is nothing to share out


@final
@dataclass(frozen=True)
class Smooth(Technique):
    """Exact to float rounding. What gives the channels out is a norm with a weight, or a layer.

    alpha: 1 moves all of an activation's unevenness into the weights, 0 all of the weights' into the
    activation; 0.5 halves it. layers: whether layers that give channels to another straight or over a
    ReLU are smoothed as well as norms. samples: of the calibration data at most.
    """

    alpha: float = 0.5
    layers: bool = True
    samples: int = 512

    def apply(self, model: nn.Module, data: Given) -> Applied:
        self.check(data)
        work = Smoothing(self, model, data)
        with torch.no_grad():
            work.run()
        return Applied(model, tuple(sorted(work.touched)), work.skipped, {"smoothed": work.evenness})

    def check(self, data: Given) -> None:
        """Raises UsageError for options out of range, or where there is no data."""
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"smooth:alpha must lie between 0 and 1, got {self.alpha}")
        if self.samples < 1:
            raise UsageError(f"smooth:samples must be at least 1, got {self.samples}")
        if not len(next(iter(data.calibrate.values()), ())):
            raise UsageError("smooth needs calibration data", fix="give calibrate=...")


@dataclass(frozen=True)
class Source:
    """What gives the channels out: ``scaled`` are the paths, in the graph, that a factor goes into."""

    path: str
    axis: int
    scaled: tuple[str, ...] = ()
    layer: Layer | None = None


class Smoothing:
    """One application: the traced model, where channels can be scaled, and why not elsewhere."""

    def __init__(self, options: Smooth, model: nn.Module, given: Given) -> None:
        self.options = options
        traced = trace(model, given.signature, given.inputs)
        self.graph = traced.graph
        self.data = samples(traced, given.calibrate, options.samples)
        self.known: Mapping[str, Range] = given.ranges or {}
        self.flows = Flows(self.graph, traced.example)
        self.skipped: dict[str, str] = {}
        self.touched: set[str] = set()
        self.evenness: dict[str, list[float]] = {}

    def run(self) -> None:
        sources = self.norms()
        found = self.followed(sources, KEPT)
        if self.options.layers:
            layers = self.sources_of_layers()
            found += self.followed(layers, HOMOGENEOUS)
            sources = sources | layers
        axes = {flow.source.name: sources[flow.source].axis for flow in found}
        reaches = spreads(self.graph, self.data, axes)
        for flow in found:
            self.smooth(sources[flow.source], flow, reach_of(flow, reaches[flow.source.name]))

    def norms(self) -> dict[Node, Source]:
        """Layer norms, RMS norms, and products with a stored weight, as norms written by hand end with."""
        found: dict[Node, Source] = {}
        for node in self.graph.graph.nodes:
            if packet(node) in LAYER_NORMS:
                parts = [argument(node, at, "") for at in LAYER_NORMS[packet(node)] if at is not None]
            elif packet(node) is aten.mul and node.meta["val"].ndim > 1:
                parts = [part for part in node.args[:2] if is_vector(part, node)]
            else:
                continue
            source = self.norm(node, parts)
            if source is not None:
                found[node] = source
        return found

    def norm(self, node: Node, parts: list[Any]) -> Source | None:
        stored = [part for part in parts if part is not None]
        if len(stored) == 0:
            if packet(node) in LAYER_NORMS:
                self.skipped[module_of(node)] = "it has no weight that a factor could go into"
        elif any(not is_own(part) for part in stored):
            self.skipped[module_of(node)] = "its weight is shared or computed"
        else:
            return Source(module_of(node), -1, tuple(str(part.target) for part in stored))
        return None

    def sources_of_layers(self) -> dict[Node, Source]:
        return {
            node: Source(layer.owner, output_axis(node), layer=layer)
            for node, layer in self.flows.by_node.items()
            if not why_not(layer, self.known)
        }

    def followed(self, sources: Mapping[Node, Source], allowed: Any) -> list[Flow]:
        """Where all readers can take a factor in."""
        flows, reasons = self.flows.follow({node: one.axis for node, one in sources.items()}, allowed)
        self.skipped |= {sources[node].path: why for node, why in reasons.items()}
        found = []
        for flow in flows:
            whys = [
                f"{one.layer.owner}: {why}" for one in flow.readers if (why := why_not(one.layer, self.known))
            ]
            if whys:
                self.skipped[sources[flow.source].path] = whys[0]
            else:
                found.append(flow)
        return found

    def smooth(self, source: Source, flow: Flow, reach: Tensor) -> None:
        weights = torch.zeros(flow.count)
        for reader in flow.readers:
            each = input_reach(tensor_at(self.graph, reader.layer.names[0]), reader.layer)
            weights.scatter_reduce_(0, reader.channels, each, "amax")
        alive = (reach > SMALLEST) & (weights > SMALLEST)
        factors = torch.where(alive, reach**self.options.alpha / weights ** (1 - self.options.alpha), 1.0)
        for path in source.scaled:
            tensor_at(self.graph, path).div_(factors)
        if source.layer is not None:
            scale_outputs(self.graph, source.layer, 1 / factors)
        for reader in flow.readers:
            scale_inputs(self.graph, reader.layer, factors[reader.channels])
        self.touched |= {source.path, *(reader.layer.owner for reader in flow.readers)}
        self.evenness[source.path] = [unevenness(reach), unevenness(reach / factors)]


def reach_of(flow: Flow, found: Spread) -> Tensor:
    """The largest magnitude that the readers see of each channel."""
    clamped = any(packet(node) in RELUS for node in flow.on_the_way)
    return (found.highest.clamp(min=0) if clamped else found.largest).float()


def unevenness(reach: Tensor) -> float:
    """The largest channel over the middle one."""
    return round(float(reach.max() / reach.median().clamp(min=1e-12)), 3)


def is_vector(part: Any, node: Node) -> bool:
    """Whether it is a stored weight of each channel of the last axis."""
    shape = node.meta["val"].shape
    return (
        isinstance(part, Node)
        and part.op == "get_attr"
        and tuple(part.meta["val"].shape) == (shape[-1],)
        and shape[-1] > 1
    )
