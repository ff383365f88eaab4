"""Folding batch norms into the layers before them: the same function with fewer operations.

In eval mode a batch norm multiplies and shifts each channel by constants; so does the layer before it.
Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn
from torch.fx import Node
from torch.nn.utils import fusion

from karui.graph.biases import give_biases, take_back
from karui.graph.capture import EXAMPLE_ROWS, Flat, export, repeat
from karui.graph.trace import ROOT, packet
from karui.techniques import Applied, Given, Technique

aten = torch.ops.aten
CONVS = (aten.conv1d, aten.conv2d, aten.conv3d)
TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@final
@dataclass(frozen=True)
class FoldNorm(Technique):
    """Exact to float rounding; the batch norm becomes ``nn.Identity``.

    A norm stays, with its reason, when its input does not come straight and only from one convolution
    or linear layer, or when one of the two is shared or used more than once.
    """

    def apply(self, model: nn.Module, data: Given) -> Applied:
        reasons = dict.fromkeys(norms_of(model), "the example inputs do not reach it")
        given = give_biases(model) if reasons else []  # so that is seen which forward passes add theirs
        seen = look(model, data) if reasons else Seen()
        touched: list[str] = []
        for node in seen.nodes:
            norm = called(node)
            if packet(node) != aten.batch_norm or norm not in reasons:
                continue
            layer = layer_before(node, seen)
            reasons[norm] = reason_of_norm(node, norm, seen) or reason_of_layer(node.args[0], layer, seen)
            if not reasons[norm]:
                fold(model, layer, norm)
                touched.append(layer)
        take_back(model, given)
        skipped = {path: reason for path, reason in reasons.items() if reason}
        return Applied(model, tuple(touched), skipped, {"folded": len(touched)})


def norms_of(model: nn.Module) -> list[str]:
    """Paths of batch norms; a subclass may compute something else and is none."""
    return [path for path, module in model.named_modules() if type(module) in NORMS]


@dataclass(frozen=True)
class Seen:
    """What the exported program tells: its nodes, the module that owns each stored tensor, what is shared."""

    nodes: tuple[Node, ...] = ()
    owners: Mapping[str, str] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()

    def owner(self, node: Node, argument: int) -> str:
        """The path of the module that stores this argument of ``node``; empty when it is computed."""
        source = node.args[argument] if len(node.args) > argument else None
        return self.owners.get(source.name, "") if isinstance(source, Node) else ""


def look(model: nn.Module, data: Given) -> Seen:
    flat = Flat(model, data.signature).eval()
    program = export(flat, repeat(data.inputs, EXAMPLE_ROWS), dynamic=False)
    told = program.graph_signature
    tensors = {**told.inputs_to_parameters, **told.inputs_to_buffers}
    owners = {name: path.removeprefix(ROOT).rpartition(".")[0] for name, path in tensors.items()}
    return Seen(tuple(program.graph.nodes), owners, shared_modules(model))


def shared_modules(model: nn.Module) -> frozenset[str]:
    """Paths of modules that stand in two places, or hold a tensor that another module holds as well."""
    stored = [
        (path, id(tensor))
        for path, module in model.named_modules(remove_duplicate=False)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    ]
    count = Counter(tensor for _, tensor in stored)
    return frozenset(path for path, tensor in stored if count[tensor] > 1)


def layer_before(node: Node, seen: Seen) -> str:
    """The path of the layer whose output is the first argument of ``node``; empty if there is none."""
    before = node.args[0]
    return seen.owner(before, 1) if isinstance(before, Node) and is_layer(before) else ""


def reason_of_norm(node: Node, norm: str, seen: Seen) -> str:
    """Why the norm computed at ``node`` cannot be folded, whatever stands before it; empty if it can."""
    if node.args[5]:
        return "it normalises by the statistics of the batch at hand"
    if norm in seen.shared or uses(node, 3) > 1:
        return "it is shared or called more than once"
    before = node.args[0]
    if not isinstance(before, Node) or not is_layer(before):
        return f"it does not follow a convolution or a linear layer, but {name_of(before)}"
    return f"what it normalises ({name_of(before)}) is used elsewhere too" if len(before.users) > 1 else ""


def reason_of_layer(node: Any, layer: str, seen: Seen) -> str:
    """Why nothing can be folded into the layer computed at ``node``; empty if it can."""
    if not layer:
        return "the weight of the layer before it is computed, not stored"
    if layer in seen.shared or uses(node, 1) > 1:
        return f"{called(node)} is shared or called more than once"
    if why := reason_of_forward(node, layer, seen):
        return why
    if node.target == aten.linear.default and node.meta["val"].ndim > 2:
        return f"{called(node)} gives sequences, whose features are not the axis that is normalised"
    if packet(node) in TRANSPOSED and len(node.args) > 6 and node.args[6] != 1:
        return f"{called(node)} is a transposed convolution in groups"
    return ""


def reason_of_forward(node: Node, layer: str, seen: Seen) -> str:
    """Why changes of the module's own weight and bias would not do; empty if they do."""
    if called(node) != layer:
        return f"the weight of {called(node)} is used by a function, not by the module"
    if seen.owner(node, 2) != layer:
        return f"the forward pass of {layer} adds no bias that the norm could go into"
    return ""


def is_layer(node: Node) -> bool:
    return packet(node) in (*CONVS, *TRANSPOSED, aten.linear)


def name_of(node: Any) -> str:
    return (called(node) or node.name) if isinstance(node, Node) else "a constant"


def called(node: Node) -> str:
    """The path of the innermost module whose forward computes ``node``."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).removeprefix(ROOT) if stack else ""


def uses(node: Node, argument: int) -> int:
    """How many operations read this argument of ``node``."""
    source = node.args[argument]
    return len(source.users) if isinstance(source, Node) else 0


def fold(model: nn.Module, layer: str, norm: str) -> None:
    """Move the norm into the layer's weight and bias, in place."""
    module: Any = model.get_submodule(layer)
    batch_norm: Any = model.get_submodule(norm)
    transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    fused: Any = (
        fusion.fuse_linear_bn_eval(module, batch_norm)
        if isinstance(module, nn.Linear)
        else fusion.fuse_conv_bn_eval(module, batch_norm, transpose=transposed)
    )
    module.weight, module.bias = fused.weight, fused.bias
    model.set_submodule(norm, nn.Identity())
