"""INT8 for the XNNPACK delegate, from karui's table of ranges or by ExecuTorch's own quantizer.

Scheme: activations s8 affine, weights s8 symmetric per channel, biases in float (the delegate makes int32 of
them). Dynamic INT8 finds the range of each layer's input at run time.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule

from karui.errors import BuildFailed, foreign
from karui.graph.call import tensors_of
from karui.graph.inductor_int8 import CALIBRATION_ROWS, path_of, pt2e
from karui.graph.onnx import answers, batches, kept_in_float, quiet, refuse_learned
from karui.graph.program import bare, delete_unread, export, open_exported, predictor
from karui.graph.trace import ROOT, packet

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.graph.ranges import program as ranges
    from karui.runtimes import Source

QUANTIZER = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"


@dataclass(frozen=True)
class Lowerable:
    """A program of a bounded batch, ready for the delegate.

    reference: of an INT8 program, its outputs on the probe, computed literally in float. found: the layers
    and their ranges, where karui's table was used; stored: the layer of each tensor of integers in it.
    """

    program: torch.export.ExportedProgram
    reference: list[Array] | None = None
    found: ranges.Quantized | None = None
    stored: Mapping[str, str] = field(default_factory=dict)


def lowerable(source: Source, quantizer: str, calibration: str) -> Lowerable:
    """Raises Unsupported where a range cannot be had, BuildFailed when the quantizer refuses."""
    precision = source.numerics.default
    if precision == "int8" and quantizer == "karui":
        return from_table(source, calibration)
    module = bare(open_exported(source.folder / "model.pt2").module())
    if precision == "fp32":
        return Lowerable(bounded(module, source))
    refuse_learned(source.folder)
    with quiet(), torch.no_grad(), foreign(BuildFailed, "XNNPACK's quantizer could not take the model"):
        module = by_xnnpack(module, source)
        reference = answers(predictor(module, source.signature), source.probe, source.signature)
        return Lowerable(bounded(module, source), reference)


def bounded(module: GraphModule, source: Source) -> torch.export.ExportedProgram:
    """The program for as many rows as the probe has: memory is planned for the largest batch."""
    rows = len(next(iter(source.probe.values())))
    return export(module, source.signature, source.probe, most=rows)


def from_table(source: Source, observer: str) -> Lowerable:
    from karui.graph.ranges import emit_pt2e, profiles
    from karui.graph.ranges.program import quantized

    found = quantized(source, profiles.executorch(), observer)
    stored = stored_integers(found.graph)
    told = "the quantized model could not be written for XNNPACK"
    with quiet(), torch.no_grad(), foreign(BuildFailed, told):
        emit_pt2e.rewrite(found.graph)
        one_reader_each(found.graph)
        return Lowerable(bounded(found.graph, source), found.reference, found, stored)


def one_reader_each(graph: GraphModule) -> None:
    """Give every reader of a rounded activation a conversion to float of its own.

    A conversion belongs to the kernel that reads it: shared between a kernel inside the delegate and one
    outside, it would tie the two together in a circle.
    """
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.quantized_decomposed.dequantize_per_tensor.default:
            for reader in list(node.users)[1:]:
                with graph.graph.inserting_after(node):
                    again = graph.graph.node_copy(node)
                reader.replace_input_with(node, again)
    graph.recompile()


def stored_integers(graph: GraphModule) -> dict[str, str]:
    """The layer of every tensor of integers that ``emit_pt2e`` will store."""
    from karui.graph.ranges.insert import HOME, OP
    from karui.graph.ranges.places import LAYERS, layer_of
    from karui.graph.ranges.program import stored_at

    rounded = [
        stored_at(node)
        for node in graph.graph.nodes
        if packet(node) in LAYERS and getattr(node.args[1], "target", None) is OP
    ]
    return {
        f"{HOME}.{path.replace('.', '_')}.integers": layer_of(path.removeprefix(ROOT)) for path in rounded
    }


def by_xnnpack(module: GraphModule, source: Source) -> GraphModule:
    """The module in PT2E form, with the ranges that ExecuTorch's quantizer sees."""
    xnnpack = importlib.import_module(QUANTIZER)
    paths = {node.name: path_of(node) for node in module.graph.nodes if path_of(node)}
    ruled = kept_in_float({name: path.removeprefix(ROOT) for name, path in paths.items()}, source.numerics)
    in_float = {paths[name] for name in ruled}
    dynamic = source.numerics.default == "int8_dynamic"
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = xnnpack.XNNPACKQuantizer().set_global(config)
    quantizer.set_filter_function(lambda node: path_of(node) not in in_float)
    prepared = pt2e().prepare_pt2e(module, quantizer)
    watch(prepared, source.calibrate or source.probe, source.signature)
    converted: GraphModule = pt2e().convert_pt2e(prepared)
    delete_unread(converted)
    return converted


def watch(prepared: GraphModule, arrays: Arrays, signature: Signature) -> None:
    """Dynamic INT8 too: one call fills the weights' observers."""
    for batch in batches(arrays, signature, CALIBRATION_ROWS):
        prepared(*tensors_of(batch).values())


def weight_name(program: Any, node: Any) -> str:
    """The name under which a program stores what ``node`` reads; empty for what it computes."""
    signature = program.graph_signature
    known = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return str(known.get(node.name, ""))
