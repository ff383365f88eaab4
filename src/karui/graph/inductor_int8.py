"""INT8 for Inductor, from karui's table of ranges or by torchao, kept clear of two faults of the lowering.

The INT8 lowering of torch 2.13 and 2.14 silently gives wrong answers for two patterns, so the graph
never holds them:

- ``linear(x) + other``, where ``other`` is a weight of the output's own shape: the fused kernel adds in
  place *into* ``other``, so that it changes from call to call. Such a sum is written as
  ``linear(x) - (-other)``: the same number, bit for bit, and nothing to fuse.
- a 2-d convolution over one channel with a dynamic batch: the strides of such an image are ambiguous
  and the kernel reads along the wrong ones. Such a convolution gets a second channel of zeros, or stays in
  float (torchao).

Scheme: activations 8-bit affine per tensor, weights 8-bit per channel (Jacob et al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule, Node

from karui import host
from karui.errors import BuildFailed, foreign
from karui.graph.call import tensors_of
from karui.graph.onnx import answers, batches, kept_in_float, quiet, refuse_learned
from karui.graph.program import bare, delete_unread, export, open_exported, predictor

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.graph.ranges import program as ranges
    from karui.numerics import Numerics
    from karui.runtimes import Source

aten = torch.ops.aten
LAYERS = (aten.linear.default, aten.conv2d.default)  # what has INT8 kernels
CALIBRATION_ROWS = 64  # samples in one calibration call
PT2E = "torchao.quantization.pt2e"


@dataclass(frozen=True)
class Quantized:
    """A quantized program, and its outputs on the probe, computed literally in float.

    in_float: paths of the convolutions and linear layers left in float on purpose. found: the layers and
    their ranges, where karui's table was used.
    """

    program: torch.export.ExportedProgram
    reference: list[Array]
    in_float: tuple[str, ...]
    found: ranges.Quantized | None = None

    def covered(self, kernels: int) -> dict[str, Any]:
        """The share of the multiplications in so many INT8 kernels; those missing count as the largest."""
        if not self.found:
            return {}
        macs = self.found.macs
        wanted = sorted((layer for layer in macs if layer not in self.in_float), key=macs.__getitem__)
        done = wanted[: max(kernels, 0)]
        return self.found.covered([f"{layer}/" for layer in done])


def quantized(source: Source, quantizer: str, calibration: str) -> Quantized:
    """By karui's table; dynamic INT8 by torchao, as also static INT8 where it is asked for."""
    if quantizer == "karui" and source.numerics.default == "int8":
        return from_table(source, calibration)
    refuse_learned(source.folder)
    program = open_exported(source.folder / "model.pt2")
    return quantize(program, source.signature, source.numerics, source.calibrate, source.probe)


def from_table(source: Source, observer: str) -> Quantized:
    """Raises Unsupported where a range cannot be had."""
    from karui.graph.ranges import emit_pt2e, profiles
    from karui.graph.ranges.program import quantized as by_table

    profile = profiles.inductor(saturates=host.saturates(source.flags))
    found = by_table(source, profile, observer)
    told = "the quantized model could not be written for Inductor"
    with quiet(), torch.no_grad(), foreign(BuildFailed, told):
        emit_pt2e.emit(found.graph)
        split_sums(found.graph)
        program = export(found.graph, source.signature, source.calibrate)
    return Quantized(program, found.reference, tuple(sorted(found.kept)), found)


def quantize(
    program: torch.export.ExportedProgram,
    signature: Signature,
    numerics: Numerics,
    calibrate: Arrays,
    probe: Arrays,
) -> Quantized:
    """Quantize ``program`` with the ranges seen on ``calibrate``.

    Modules that a rule of ``numerics`` sets to fp32 stay in float. Raises Unsupported when a rule fits
    no module, BuildFailed when torchao refuses.
    """
    module = bare(program.module())
    with quiet(), torch.no_grad(), foreign(BuildFailed, "torchao could not quantize the model"):
        split_sums(module)
        in_float = float_modules(module, numerics)
        layers = {
            path_of(node).removeprefix("model.")
            for node in module.graph.nodes
            if node.target in LAYERS and path_of(node) in in_float
        }
        prepared = prepare(module, in_float, dynamic=numerics.default == "int8_dynamic")
        for batch in batches(calibrate, signature, CALIBRATION_ROWS):
            prepared(*tensors_of(batch).values())  # dynamic INT8 too: one call fills the weights' observers
        module = pt2e().convert_pt2e(prepared)
        delete_unread(module)
        return Quantized(
            program=export(module, signature, calibrate),
            reference=answers(predictor(module, signature), probe, signature),
            in_float=tuple(sorted(layers)),
        )


def said(in_float: tuple[str, ...]) -> tuple[str, ...]:
    """The note that tells which modules stayed in float; none when all that can be were quantized."""
    return (f"kept in float: {', '.join(in_float)}",) if in_float else ()


def operations() -> None:
    """Register the operations a quantized program is written in; needed before one is opened."""
    pt2e()


def split_sums(module: GraphModule) -> None:
    """Rewrite every ``layer + constant-or-input`` as ``layer - (-constant-or-input)``, in place."""
    early = before_layers(module)
    for node in list(module.graph.nodes):
        if node.target not in (aten.add.Tensor, aten.add_.Tensor) or not all(map(is_node, node.args[:2])):
            continue
        late = [arg for arg in node.args[:2] if arg not in early]
        other = [arg for arg in node.args[:2] if arg in early]
        if len(late) != 1 or node.kwargs or (node.target == aten.add_.Tensor and node.args[0] in early):
            continue
        with module.graph.inserting_before(node):
            negative = module.graph.call_function(aten.neg.default, (other[0],))
            minus = module.graph.call_function(aten.sub.Tensor, (late[0], negative))
        negative.meta, minus.meta = dict(other[0].meta), dict(node.meta)
        node.replace_all_uses_with(minus)
        module.graph.erase_node(node)
    module.recompile()


def is_node(value: Any) -> bool:
    return isinstance(value, Node)


def before_layers(module: GraphModule) -> set[Node]:
    """Nodes that depend on weights and inputs through no convolution or linear layer."""
    early: set[Node] = set()
    for node in module.graph.nodes:
        if node.target not in LAYERS and all(source in early for source in node.all_input_nodes):
            early.add(node)
    return early


def float_modules(module: GraphModule, numerics: Numerics) -> list[str]:
    """Paths, in the captured program, of modules to leave in float: by rule, or for a fault's sake."""
    paths = {node.name: path_of(node) for node in module.graph.nodes if path_of(node)}
    ruled = kept_in_float({name: path.removeprefix("model.") for name, path in paths.items()}, numerics)
    faulty = [node.name for node in module.graph.nodes if is_one_channel(node)]
    return sorted({paths[name] for name in [*ruled, *faulty]})


def is_one_channel(node: Node) -> bool:
    return node.target == aten.conv2d.default and node.args[0].meta["val"].shape[1] == 1  # type: ignore[union-attr]


def path_of(node: Node) -> str:
    """The path of the module that computes ``node``; empty when the program does not tell."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def prepare(module: GraphModule, in_float: list[str], *, dynamic: bool) -> GraphModule:
    """Insert observers."""
    x86 = importlib.import_module(f"{PT2E}.quantizer.x86_inductor_quantizer")
    config = x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    quantizer = x86.X86InductorQuantizer()
    for path in in_float:
        quantizer.set_module_name_qconfig(path, None)
    if dynamic:
        quantizer.set_function_type_qconfig(torch.nn.functional.linear, config)
    else:
        quantizer.set_global(config)
    prepared: GraphModule = pt2e().prepare_pt2e(module, quantizer)
    return prepared


def pt2e() -> Any:
    """torchao's quantization, and with it the operations a quantized program is written in."""
    with quiet():
        return importlib.import_module(f"{PT2E}.quantize_pt2e")
