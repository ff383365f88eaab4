"""Programs for LiteRT: what its converter is given, in which precision.

Static INT8 comes from karui's table of ranges, in the same form (PT2E) as for ExecuTorch; dynamic INT8 rounds
the weights and leaves ranges of activations to the kernels; LiteRT's own quantizer works in its environment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import GraphModule

from karui.errors import BuildFailed, foreign
from karui.graph.consumers import tensor_at
from karui.graph.inductor_int8 import CALIBRATION_ROWS
from karui.graph.litert_converter import convert
from karui.graph.onnx import answers, batches, quiet, refuse_learned
from karui.graph.program import export, open_exported, predictor, save_exported
from karui.graph.trace import ROOT, module_of, packet

if TYPE_CHECKING:
    from karui.data import Array
    from karui.graph.ranges import program as ranges
    from karui.runtimes import Source

aten = torch.ops.aten
WEIGHT_AT = {aten.linear: 1, aten.conv2d: 1, aten.embedding: 0}  # of outputs, or rows, along the first axis
MODES = {"fp32": "float", "fp16": "half", "int8": "static", "int8_dynamic": "dynamic"}


@dataclass(frozen=True)
class Convertible:
    """A program with a batch of any size, and how it is to be read.

    reference: of an INT8 program, its outputs on the probe, computed literally in float. found: the layers
    and their ranges, where karui's table was used; scales: those of each layer's weights, by which it is
    known in the file.
    """

    program: torch.export.ExportedProgram
    mode: str
    reference: list[Array] | None = None
    found: ranges.Quantized | None = None
    scales: Mapping[str, Array] = field(default_factory=dict)


def convertible(source: Source, quantizer: str, observer: str) -> Convertible:
    """Raises Unsupported where a range cannot be had."""
    precision = source.numerics.default
    if precision == "int8" and quantizer == "karui":
        return from_table(source, observer)
    if precision == "int8_dynamic":
        return with_weights_rounded(source)
    mode = "own" if precision == "int8" else MODES[precision]
    return Convertible(open_exported(source.folder / "model.pt2"), mode)


def from_table(source: Source, observer: str) -> Convertible:
    from karui.graph.ranges import emit_pt2e, profiles
    from karui.graph.ranges.program import quantized

    found = quantized(source, profiles.litert(), observer)
    scales = scales_of(found.graph)
    with (
        quiet(),
        torch.no_grad(),
        foreign(BuildFailed, "the quantized model could not be written for LiteRT"),
    ):
        emit_pt2e.rewrite(found.graph, folded=False)
        program = export(found.graph, source.signature, source.probe)
    return Convertible(program, "static", found.reference, found, scales)


def with_weights_rounded(source: Source) -> Convertible:
    """In its reference only weights are rounded: each kernel finds the range of its input as it runs.

    The converter rounds what is left in float here too, and embeddings so that no kernel reads them.
    """
    from karui.graph.ranges import emit_pt2e
    from karui.graph.ranges.program import folded

    refuse_learned(source.folder)
    with (
        quiet(),
        torch.no_grad(),
        foreign(BuildFailed, "the model's weights could not be rounded for LiteRT"),
    ):
        graph = folded(source.folder)[0]
        round_weights(graph)
        reference = answers(predictor(graph, source.signature), source.probe, source.signature)
        emit_pt2e.rewrite(graph, folded=False)
        return Convertible(export(graph, source.signature, source.probe), "dynamic", reference)


def round_weights(graph: GraphModule) -> None:
    """Those of linear layers, convolutions of images and embeddings, in place."""
    from karui.graph.ranges import insert, profiles
    from karui.graph.ranges.calibrate import weight_range

    for number, node in enumerate(list(graph.graph.nodes)):
        weight: Any = node.args[WEIGHT_AT[packet(node)]] if packet(node) in WEIGHT_AT else None
        if weight is None or weight.op != "get_attr":
            continue
        rounded = insert.rounded_already(weight)
        if rounded is None:
            one = weight_range(tensor_at(graph, weight.target), 0, "minmax")
            with graph.graph.inserting_before(node):
                rounded = insert.call(graph, weight, one, profiles.litert().weights, f"w{number}")
        node.replace_input_with(weight, rounded)
    graph.recompile()


def scales_of(graph: GraphModule) -> dict[str, Array]:
    """By layer: the scales of its weights, one for each output."""
    from karui.graph.ranges.insert import OP
    from karui.graph.ranges.places import LAYERS, layer_of
    from karui.graph.ranges.program import stored_at

    return {
        layer_of(stored_at(node).removeprefix(ROOT)): tensor_at(graph, node.args[1].args[1].target).numpy()
        for node in graph.graph.nodes
        if packet(node) in LAYERS and getattr(node.args[1], "target", None) is OP
    }


@dataclass(frozen=True)
class Converted:
    """converter: its version. reference: as of ``Convertible``; LiteRT's own quantizer makes one too."""

    converter: str
    reference: list[Array] | None


def write(made: Convertible, source: Source, sizes: Sequence[int], path: Path) -> Converted:
    """Convert into the file ``path`` for batches of these sizes.

    Raises MissingRuntime without a converter, BuildFailed when it refuses the model.
    """
    if made.mode == "own":
        refuse_learned(source.folder)
    with tempfile.TemporaryDirectory(prefix="karui-litert-") as scratch, quiet():
        home = Path(scratch)
        name_after_modules(made.program)
        save_exported(made.program, home / "program.pt2")
        asked = {
            "program": str(home / "program.pt2"),
            "mode": made.mode,
            "inputs": [asdict(port) for port in source.signature.inputs],
            "batches": list(sizes),
            "to": str(path),
        }
        version = convert(asked | (own_rows(source, home) if made.mode == "own" else {}))
        return Converted(version, read_reference(source, home) if made.mode == "own" else made.reference)


def name_after_modules(program: torch.export.ExportedProgram) -> None:
    """Let tensors of the file be named by the paths of the user's modules, and by nothing else of theirs."""
    for node in program.graph.nodes:
        if "nn_module_stack" in node.meta:
            node.meta["nn_module_stack"] = {"": ("", module_of(node))}


def own_rows(source: Source, home: Path) -> dict[str, Any]:
    """What LiteRT's own quantizer sees, in whole batches, and where its reference goes."""
    rows = CALIBRATION_ROWS if source.signature.dynamic_batch else source.signature.batch
    paths = {name: str(home / f"{name}.npz") for name in ("calibrate", "probe", "reference")}
    for name, arrays in (("calibrate", source.calibrate), ("probe", source.probe)):
        parts = list(batches(arrays, source.signature, rows))
        np.savez(paths[name], *[np.concatenate([part[key] for part in parts]) for key in arrays])
    return paths | {"rows": rows}


def read_reference(source: Source, home: Path) -> list[Array]:
    count = len(next(iter(source.probe.values())))
    with np.load(home / "reference.npz", allow_pickle=False) as stored:
        return [stored[name][:count] for name in stored.files]
