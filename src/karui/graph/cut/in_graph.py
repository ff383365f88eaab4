"""The cut in the exported graph, for code with sizes written in it: a new module with the same call."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from karui.artifact import Signature
from karui.graph.cut.edits import Edit
from karui.graph.cut.in_module import replace, smaller
from karui.graph.cut.shapes import Gone, kept
from karui.graph.trace import twin_of
from karui.graph.units import Units
from karui.structure import flatten, unflatten

aten = torch.ops.aten


@final
class Exported(nn.Module):
    """A graph of flat inputs that is called like the model it was exported from.

    It is fixed in eval mode: norms use their statistics, dropout is off.
    """

    def __init__(self, body: GraphModule, signature: Signature) -> None:
        nn.Module.__init__(self)
        self.body = body
        self.names = [port.name for port in signature.inputs]
        self.tree = signature.tree

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(self.names, args)), **kwargs}
        if len(args) == 1 and isinstance(args[0], Mapping):
            given = {**args[0], **kwargs}
        outputs = self.body(*[given[name] for name in self.names])
        return unflatten(list(flatten(outputs)[0]), self.tree)


def cut_graph(units: Units, gone: Gone, changes: Mapping[str, Edit]) -> nn.Module:
    """The graph with smaller tensors and every size in it derived again."""
    body = twin_of(units.trace.graph)
    done: dict[int, Tensor] = {}
    for path, labels in units.weights.items():
        old, left = operator.attrgetter(path)(body), kept(labels, gone)
        if left.changed:
            done.setdefault(id(old), smaller(old, left.take(old.detach())))
            replace(body, path, done[id(old)])
    for node in body.graph.nodes:
        if node.target is aten.view.default:  # other sizes may need a copy
            node.target = aten.reshape.default
    twins = {node.name: node for node in body.graph.nodes}
    for name, edit in changes.items():
        new: Any = torch.fx.map_arg(tuple(edit.args.items()), lambda node: twins[node.name])
        apply(body, twins[name], dict(new), edit)
    body.graph.lint()
    body.recompile()
    return Exported(body, units.trace.signature)


def apply(body: GraphModule, node: Node, new: Mapping[int, Any], edit: Edit) -> None:
    """Carry out ``edit``; ``new`` are its arguments, with nodes of this graph in them."""
    if edit.picks is not None:
        pick(body, node, *edit.picks)
        return
    args = list(node.args)
    for position, value in sorted(new.items()):
        args[position : position + 1] = [value]
    node.args, node.kwargs = tuple(args), {**node.kwargs, **edit.kwargs}
    if edit.target is not None:
        node.target = edit.target
    if edit.factor != 1.0:
        with body.graph.inserting_after(node):
            scaled = body.graph.call_function(aten.mul.Tensor, (node, edit.factor))
        node.replace_all_uses_with(scaled, lambda user: user is not scaled)


def pick(body: GraphModule, node: Node, axis: int, positions: Tensor) -> None:
    """The node becomes a selection of positions: a slice where they follow each other evenly."""
    steps = sorted(set(positions.diff().tolist())) or [1]
    if len(steps) == 1 and steps[0] > 0:
        node.target = aten.slice.Tensor
        node.args = (node.args[0], axis, int(positions[0]), int(positions[-1]) + 1, steps[0])
    else:
        name = f"positions_{node.name}"
        body.register_buffer(name, positions)
        with body.graph.inserting_before(node):
            source = body.graph.get_attr(name)
        node.target, node.args = aten.index_select.default, (node.args[0], axis, source)
    node.kwargs = {}
