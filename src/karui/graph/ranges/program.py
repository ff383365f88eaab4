"""From a captured model to what a runtime emits: folded, calibrated, and rounded where the runtime rounds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from karui.artifact import RANGES
from karui.graph.call import tensors_of
from karui.graph.capture import repeat
from karui.graph.consumers import tensor_at
from karui.graph.fold import fold_norms
from karui.graph.onnx import answers, batches, kept_in_float, path_of, quiet
from karui.graph.program import bare, open_exported, predictor
from karui.graph.ranges.calibrate import ROWS, calibrate
from karui.graph.ranges.insert import insert
from karui.graph.ranges.pictures import pictures
from karui.graph.ranges.places import LAYERS, TRANSPOSED, Profile, layer_of, layers, weight_path
from karui.graph.ranges.saturation import Saturating
from karui.graph.ranges.sensitivity import sensitivity
from karui.graph.ranges.table import S7, S8, Table, load_table, save_table
from karui.graph.trace import ROOT, Walk, module_of, packet, twin_of
from karui.numerics import Numerics

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.runtimes import Source

SENSITIVITY_ROWS = (4, 32)  # samples on which the sensitivity of each module is heard, fewer of large ones:
SENSITIVITY_NUMBERS = 2**20  # about so many numbers; every module takes a pass over them


@dataclass(frozen=True)
class Quantized:
    """A graph with ``fake_quant``, and what it should answer on the probe.

    macs: multiplications a sample of each layer (``places.layer_of``). kept: layers that a rule keeps in
    float. told: what the report shows of each layer (``told_of``).
    """

    graph: GraphModule
    reference: list[Array]
    table: Table
    macs: Mapping[str, float]
    kept: frozenset[str]
    told: Mapping[str, Mapping[str, Any]]

    def covered(self, names: Iterable[str]) -> dict[str, Any]:
        """The share of the layers' multiplications done by INT8 kernels of these names, and each layer's."""
        done, all_of_it = {path_of(name) for name in names}, max(sum(self.macs.values()), 1.0)
        layers = [
            {"layer": layer, "macs": round(many / all_of_it, 4), "int8": layer in done, **self.told[layer]}
            for layer, many in self.macs.items()
        ]
        share = sum(many for layer, many in self.macs.items() if layer in done) / all_of_it
        return {"int8_macs": round(share, 4), "layers": layers}


def quantized(source: Source, profile: Profile, observer: str) -> Quantized:
    """The captured model of ``source`` with its ranges, found once a model and observer.

    Raises Unsupported when a rule fits no layer, or a range cannot be had.
    """
    with quiet(), torch.no_grad():
        graph, factors = folded(source.folder)
        check_rules(graph, source.numerics)
        key = f"{observer}-{digest(source.calibrate)}"
        table = ranges_of(graph, factors, source, observer, key)
        macs = macs_of(graph, source.signature, source.calibrate)
        told = told_of(graph, table, profile, source, key)
        chosen = insert(graph, table, profile, source.numerics)
        done = {layer_of(stored_at(node).removeprefix(ROOT)) for node in chosen if packet(node) in LAYERS}
        return Quantized(
            graph=graph,
            reference=answers(predictor(graph, source.signature), source.probe, source.signature),
            table=table,
            macs=macs,
            kept=frozenset(macs) - done,
            told=told,
        )


def folded(folder: Path) -> tuple[GraphModule, dict[str, torch.Tensor]]:
    """The captured program without batch norms, and what weights were multiplied by, by their paths."""
    graph = bare(open_exported(folder / "model.pt2").module())
    factors = fold_norms(graph)
    return graph, {path.removeprefix(ROOT): factor for path, factor in factors.items()}


def ranges_of(
    graph: GraphModule, factors: Mapping[str, torch.Tensor], source: Source, observer: str, key: str
) -> Table:
    """The model's table, kept by ``key``; what steps have learned stands in the captured model's folder."""
    kept = source.folder / f"ranges-{key}"
    if (kept / RANGES).is_file():
        return load_table(kept)
    known = load_table(source.folder) if (source.folder / RANGES).is_file() else Table()
    moved = {path: one.times(factors[path]) if path in factors else one for path, one in known.items()}
    flat = (tuple(tensors_of(part).values()) for part in batches(source.calibrate, source.signature, ROWS))
    table = calibrate(graph, flat, observer, Table(moved))
    kept.mkdir(exist_ok=True)
    save_table(table, kept)
    return table


def told_of(
    graph: GraphModule, table: Table, profile: Profile, source: Source, key: str
) -> dict[str, dict[str, Any]]:
    """By layer: its ``module``, that one's sensitivity ``sqnr_db`` and histograms (``pictures``).

    clipped_8_bit: where weights are of 7 bits for want of VNNI, the share of its 16-bit sums that 8 bits
    would clip. Found once a model and profile, and kept by ``key``.
    """
    path = source.folder / f"layers-{hashlib.sha256(f'{profile}{key}'.encode()).hexdigest()[:12]}.json"
    if not path.is_file():
        path.write_text(json.dumps(looked_at(graph, table, profile, source)), encoding="utf-8")
    told: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return told


def looked_at(graph: GraphModule, table: Table, profile: Profile, source: Source) -> dict[str, Any]:
    some, one = (
        tuple(tensors_of(next(batches(source.calibrate, source.signature, rows))).values())
        for rows in (rows_heard(source.calibrate), 1)
    )
    heard, drawn = sensitivity(graph, table, profile, some), pictures(graph, table, some)
    clipped = clipping(graph, table, profile, one)
    homes = {layer_of(weight_path(node)): module_of(node) for node in layers(graph)}
    return {
        layer: {
            "module": module,
            "sqnr_db": heard.get(module),
            **({"clipped_8_bit": clipped[layer]} if layer in clipped else {}),
            **drawn.get(layer, {}),
        }
        for layer, module in homes.items()
    }


def rows_heard(data: Arrays) -> int:
    least, most = SENSITIVITY_ROWS
    numbers: int = sum(math.prod(array.shape[1:]) for array in data.values())
    return max(least, min(most, SENSITIVITY_NUMBERS // max(numbers, 1)))


def clipping(
    graph: GraphModule, table: Table, profile: Profile, inputs: tuple[torch.Tensor, ...]
) -> dict[str, float]:
    """The share of 16-bit sums of each layer that 8-bit weights would clip, where they are reduced for it."""
    if profile.weights is not S7 or any(one.learned for one in table.values()):
        return {}
    twin = twin_of(graph)
    insert(twin, table, dataclasses.replace(profile, weights=S8), Numerics("int8"))
    emulated = Saturating(twin)
    emulated.run(*inputs)
    return {
        layer_of(stored_at(node).removeprefix(ROOT)): round(share, 6)
        for node, share in emulated.shares.items()
    }


def digest(arrays: Arrays) -> str:
    found = hashlib.sha256()
    for name, array in arrays.items():
        found.update(f"{name}{array.shape}{array.dtype}".encode())
        for row in array:
            found.update(np.ascontiguousarray(row).data)
    return found.hexdigest()[:12]


def check_rules(graph: GraphModule, numerics: Numerics) -> None:
    """Raise Unsupported for a rule that fits no module."""
    kept_in_float({node.name: module_of(node) for node in graph.graph.nodes if module_of(node)}, numerics)


def macs_of(graph: GraphModule, signature: Signature, data: Arrays) -> dict[str, float]:
    """Multiplications a sample of each layer with a stored weight."""
    rows = 1 if signature.dynamic_batch else signature.batch
    found: dict[str, float] = {}
    wanted = set(layers(graph))
    for node, args, _, value in Walk(graph).steps(*tensors_of(repeat(data, rows)).values()):
        if node in wanted:
            many = args[0].numel() if packet(node) in TRANSPOSED else value.numel()
            weight = tensor_at(graph, stored_at(node))
            layer = layer_of(weight_path(node))
            found[layer] = found.get(layer, 0.0) + many * math.prod(weight.shape[1:]) / rows
    return found


def stored_at(layer: Node) -> str:
    """The path, in the graph, of a layer's weight, also through the ``fake_quant`` before it."""
    weight: Any = layer.args[1]
    return str(weight.target if weight.op == "get_attr" else weight.args[0].target)
