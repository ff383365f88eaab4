"""Units: which indices of which parameters must be removed together, for any model that can be exported.

Every index of every axis of every parameter gets a label. The labels ride through the graph; operations
that only move elements are run on the labels themselves, others unify them. A class of labels that
unified is a *unit*. A class that an operation without a rule touches is frozen, with the reason kept.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from karui.graph.trace import Trace, Walk, argument, line_of, module_of, op_name, packet
from karui.graph.units import moves, recurrent, rules
from karui.graph.units.classes import Classes
from karui.graph.units.labels import Labels, Plane, on_axis

aten = torch.ops.aten
CONVS = (
    aten.conv1d,
    aten.conv2d,
    aten.conv3d,
    aten.conv_transpose1d,
    aten.conv_transpose2d,
    aten.conv_transpose3d,
)
LOOKS = {
    "sym_size",
    "sym_numel",
    "sym_stride",
    "_assert_tensor_metadata",
    "_assert_scalar",
}  # reads of sizes: they carry no labels


@dataclass(frozen=True)
class Units:
    """What was found: the classes, the labels of every value by node name, and those of every stored tensor.

    weights: path in the graph -> labels; tied tensors share theirs. indices: by node name, the constant
    positions that an index operation reads. roots: the class of every label.
    """

    trace: Trace
    classes: Classes
    ports: Mapping[str, Any]
    weights: Mapping[str, Labels]
    indices: Mapping[str, Tensor]
    roots: Tensor

    def of(self, node: Any) -> Any:
        """Labels of a node's result; None for what is no tensor."""
        return self.ports.get(node.name) if isinstance(node, Node) else None


@dataclass
class Finder:
    """Walks the graph once, on a few example samples."""

    trace: Trace
    classes: Classes = field(default_factory=Classes)
    ports: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Labels] = field(default_factory=dict)
    stored: dict[int, Labels] = field(default_factory=dict)
    constant: dict[str, bool] = field(default_factory=dict)
    indices: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> Units:
        for node, args, kwargs, value in Walk(self.trace.graph).steps(*self.trace.example):
            self.visit(node, args, kwargs, value)
        self.keep_unread()
        self.classes.settle()
        return Units(self.trace, self.classes, self.ports, self.weights, self.indices, self.classes.roots())

    def visit(self, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any], value: Any) -> None:
        self.constant[node.name] = node.op == "get_attr" or (
            node.op == "call_function" and all(self.constant[n.name] for n in node.all_input_nodes)
        )
        if node.op == "get_attr" and isinstance(value, Tensor):
            self.ports[node.name] = self.weight(node, value)
        elif node.op == "placeholder" and isinstance(value, Tensor):
            self.ports[node.name] = Labels(tuple(value.shape))
        elif node.op == "output":
            self.freeze_inputs(node, "the model's output")
        elif node.op == "call_function":
            self.call(node, args, kwargs, value)

    def weight(self, node: Node, value: Tensor) -> Labels:
        """Labels of a stored tensor: one plane an axis. The same tensor under another name has the same."""
        key = id(value)
        if key not in self.stored:
            self.stored[key] = Labels(tuple(value.shape), tuple(self.planes_of(node, value)))
        self.weights[str(node.target)] = self.stored[key]
        return self.stored[key]

    def planes_of(self, node: Node, value: Tensor) -> list[Plane]:
        groups = groups_of(node)
        planes = []
        for axis, size in enumerate(value.shape):
            if size == 1:
                continue
            if axis == 1 and groups > 1:  # each group of a convolution has inputs of its own
                table = self.classes.new(groups * size).reshape(groups, 1, size)
                rows = table.expand(groups, value.shape[0] // groups, size).reshape(value.shape[0], size)
                planes.append(rows.reshape(*rows.shape, *[1] * (value.ndim - 2)))
            else:
                planes.append(on_axis(self.classes.new(size), axis, value.ndim))
        return planes

    def keep_unread(self) -> None:
        """Of a table that is only read in parts, what these inputs do not read is for longer ones."""
        users: dict[str, list[Node]] = {}
        for node in self.trace.graph.graph.nodes:
            if node.op == "get_attr" and str(node.target) in self.weights:
                users.setdefault(str(node.target), []).extend(node.users)
        for path, readers in users.items():
            parts = [self.ports.get(reader.name) for reader in readers]
            if not all(packet(reader) in moves.PARTS for reader in readers):
                continue
            planes = [plane.reshape(-1) for part in parts if part is not None for plane in part.planes]
            read = torch.cat([torch.empty(0, dtype=torch.int64), *planes])
            for plane in self.weights[path].planes:
                unread = plane[~torch.isin(plane, read)]
                if 0 < len(unread) < plane.numel():
                    self.classes.freeze(unread, "inputs like the example do not read it")

    def freeze_inputs(self, node: Node, why: str) -> None:
        for source in node.all_input_nodes:
            labels = self.ports.get(source.name)
            for one in labels if isinstance(labels, list) else [labels]:
                for plane in one.planes if one else ():
                    self.classes.freeze(plane, why)

    def call(self, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any], value: Any) -> None:
        if node.target is operator.getitem:
            source = self.ports.get(str(node.args[0]))
            if isinstance(source, list):
                self.ports[node.name] = source[args[1]]
            return
        if not any(
            isinstance(part, Tensor) for part in (value if isinstance(value, (tuple, list)) else [value])
        ):
            if op_name(node) not in LOOKS:  # a number that is read from a tensor may be used for anything
                self.freeze_inputs(node, f"{self.why(node)}: read as a number")
            return
        known = [self.labels(arg) for arg in node.args]
        named = [self.labels(arg) for arg in node.kwargs.values()]
        constant = [self.is_constant(arg) for arg in node.args]
        call = rules.Call(self.classes, node, args, kwargs, [*known, *named], constant, value, self.why(node))
        rule = rules.rule_of(node) or rules.frozen
        self.ports[node.name] = rule(call)
        if packet(node) in recurrent.GATES:
            self.size_first_states(node)
        if packet(node) in moves.INDEXES and all(constant[1:]):
            self.keep_indices(node, args)

    def size_first_states(self, node: Node) -> None:
        """Zeros that a recurrent layer starts from are as many as its units."""
        states: Any = node.args[1]
        results = self.ports[node.name]
        for state, labels in zip(states if isinstance(states, (list, tuple)) else [states], results[1:]):
            if rules.is_filled(state):
                self.ports[state.name] = labels

    def keep_indices(self, node: Node, args: Sequence[Any]) -> None:
        parts = [part for arg in args[1:] for part in (arg if isinstance(arg, (list, tuple)) else [arg])]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if len(tensors) == 1:
            found = tensors[0].detach().clone()
            self.indices[node.name] = (
                found.nonzero().reshape(-1) if found.dtype is torch.bool else found.long()
            )

    def labels(self, arg: Any) -> Any:
        if isinstance(arg, (list, tuple)) and any(isinstance(part, Node) for part in arg):
            found = [self.labels(part) for part in arg]
            return found if any(one is not None for one in found) else None
        return self.ports.get(arg.name) if isinstance(arg, Node) else None

    def is_constant(self, arg: Any) -> bool:
        if isinstance(arg, (list, tuple)):
            return all(self.is_constant(part) for part in arg)
        return self.constant[arg.name] if isinstance(arg, Node) else True

    def why(self, node: Node) -> str:
        place = ", ".join(part for part in (module_of(node), line_of(node)) if part)
        return f"{op_name(node)} ({place})" if place else op_name(node)


def groups_of(node: Node) -> int:
    """How many groups the convolution has that alone uses this weight; 1 otherwise."""
    users = list(node.users)
    if len(users) != 1 or packet(users[0]) not in CONVS or users[0].args[1] is not node:
        return 1
    groups = argument(users[0], 6, "groups", 1)
    return groups if isinstance(groups, int) else 1


def find_units(trace: Trace, *, inexact: bool = False) -> Units:
    """Label a traced model. Nothing is changed.

    inexact: units that a layer or group norm or a softmax looks at together may go too.
    """
    return Finder(trace, Classes(lenient=inexact)).run()
