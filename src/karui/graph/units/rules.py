"""One rule an operation: labels of the arguments in, labels of the result out. What has no rule is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from karui.graph.trace import packet
from karui.graph.units import contract, layers, moves, recurrent
from karui.graph.units.classes import Classes
from karui.graph.units.labels import Labels, moved, on_axis, without
from karui.graph.units.merge import merge

aten = torch.ops.aten
UNTAGGED = {  # element by element, though torch does not tag them so
    aten.hardswish, aten.hardswish_, aten.mish_, aten.relu6_, aten.gelu_, aten.threshold_, aten.rrelu_,
    aten.log_sigmoid, aten.masked_fill, aten.masked_fill_, aten.fill_, aten.abs_, aten.floor_divide,
    aten.true_divide, aten.true_divide_, aten.rsub,
}  # fmt: skip
Found = Labels | list[Labels]


@dataclass(frozen=True)
class Call:
    """One operation as it ran: its arguments as values and as labels, and its result.

    ``labels`` mirrors ``args``: Labels for tensors, lists of them for lists of tensors, None otherwise.
    ``constant`` tells which arguments do not depend on the model's inputs.
    """

    classes: Classes
    node: Node
    args: Sequence[Any]
    kwargs: Any
    labels: Sequence[Any]
    constant: Sequence[bool]
    value: Any
    why: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def tensors(self) -> list[Labels]:
        """Labels of all tensor arguments, lists taken apart."""
        found: list[Labels] = []
        for labels in self.labels:
            found += [one for one in (labels if isinstance(labels, list) else [labels]) if one is not None]
        return found

    def optional(self, *positions: int) -> list[Labels]:
        return [self.labels[i] for i in positions if len(self.labels) > i and self.labels[i] is not None]


def rule_of(node: Node) -> Callable[[Call], Found] | None:
    """The rule of an operation, or None."""
    target = packet(node)
    if target in RULES:
        return RULES[target]
    for family, rule in FAMILIES:
        if target in family:
            return rule
    tags = getattr(node.target, "tags", ())
    return pointwise if torch.Tag.pointwise in tags or target in UNTAGGED else None


def pointwise(call: Call) -> Found:
    return merge(call.classes, call.tensors(), call.shape, call.why)


def mover(call: Call) -> Found:
    how = moves.Move(call.node.target, call.args[1:], call.kwargs)
    found: Found = moves.move(call.classes, how, call.labels[0], call.value, call.why)
    return found


def shuffled(call: Call) -> Found:
    """Channels as a table of groups, turned: every group loses the same positions."""
    for plane in call.labels[0].along(1):
        table = plane.movedim(1, 0).reshape(call.args[1], plane.shape[1] // call.args[1], -1)
        call.classes.unify(table[:1], table, call.why)
    return mover(call)


def same(call: Call) -> Found:
    value = call.value
    return [call.labels[0]] * len(value) if isinstance(value, (tuple, list)) else call.labels[0]


def concatenated(call: Call) -> Found:
    return moves.concatenate(call.classes, call.labels[0], call.arg(1, "dim", 0), call.shape, call.why)


def stacked(call: Call) -> Found:
    return moves.stack(call.classes, call.labels[0], call.arg(1, "dim", 0), call.shape, call.why)


def indexed(call: Call) -> Found:
    positions = [
        labels for part in call.labels[1:] for labels in (part if isinstance(part, list) else [part])
    ]
    for labels in positions:
        for plane in labels.planes if labels else ():
            call.classes.freeze(plane, f"{call.why}: positions, not units")
    constant = all(call.constant[1:])
    how = moves.Move(call.node.target, call.args[1:], call.kwargs)
    return moves.index(call.classes, how, call.labels[0], call.value, call.why, constant=constant)


def linear(call: Call) -> Found:
    x, weight = call.labels[0], call.labels[1]
    lead = "abcdefgh"[: len(x.shape) - 1]
    one, other = contract.Operand(f"{lead}k", x), contract.Operand("ok", weight)
    made = contract.contract(call.classes, one, other, f"{lead}o", call.shape, call.why)
    return merge(call.classes, [made, *call.optional(2)], call.shape, call.why)


def convolution(call: Call) -> Found:
    return conv(call, call.arg(6, "groups", 1), transposed=False)


def convolution_transposed(call: Call) -> Found:
    return conv(call, call.arg(6, "groups", 1), transposed=True)


def conv(call: Call, groups: int, *, transposed: bool) -> Found:
    if any(isinstance(argument, Node) for argument in call.node.args[6:7]):
        return frozen(call)  # as many groups as there are samples
    x, weight = call.labels[0], call.labels[1]
    form = contract.Convolution(x, weight, groups, transposed)
    made = contract.convolve(call.classes, form, call.shape, call.why)
    spread = [layers.channel_vector(b, len(call.shape)) for b in call.optional(2)]
    return merge(call.classes, [made, *spread], call.shape, call.why)


def product(call: Call) -> Found:
    return contract.matmul(call.classes, call.labels[0], call.labels[1], call.shape, call.why)


def product_plus(call: Call) -> Found:
    made = contract.matmul(call.classes, call.labels[1], call.labels[2], call.shape, call.why)
    return merge(call.classes, [made, call.labels[0]], call.shape, call.why)


def einsum(call: Call) -> Found:
    equation = call.args[0].replace(" ", "")
    inputs, _, out = equation.partition("->")
    names, parts = inputs.split(","), call.labels[1]
    repeated = any(len(set(name)) < len(name) for name in names)
    summed = {letter for letter in "".join(names) if letter not in out}
    lone = any(sum(letter in name for name in names) < 2 for letter in summed)
    if len(parts) != 2 or repeated or lone or "." in equation or not out:
        return frozen(call)
    one, other = (contract.Operand(name, labels) for name, labels in zip(names, parts))
    return contract.contract(call.classes, one, other, out, call.shape, call.why)


def attention(call: Call) -> Found:
    query, key, value = call.labels[:3]
    if call.kwargs.get("enable_gqa"):
        key, value = (repeated_heads(call, labels, query) for labels in (key, value))
    swapped = Labels(
        (*key.shape[:-2], key.shape[-1], key.shape[-2]),
        tuple(plane.transpose(-1, -2) for plane in key.planes),
    )
    shape = (*query.shape[:-1], key.shape[-2])
    scores = contract.matmul(call.classes, query, swapped, shape, call.why)
    if len(call.labels) > 3 and call.labels[3] is not None:
        scores = merge(call.classes, [scores, call.labels[3]], shape, call.why)
    scores = layers.along(call.classes, scores, len(shape) - 1, call.why)
    return contract.matmul(call.classes, scores, value, call.shape, call.why)


def repeated_heads(call: Call, labels: Labels, query: Labels) -> Labels:
    times = query.shape[-3] // labels.shape[-3]
    shape = (*labels.shape[:-3], query.shape[-3], *labels.shape[-2:])
    found = moved(labels, shape, lambda full: full.repeat_interleave(times, -3))
    if labels.shape[-3] > 1:
        return found
    heads = on_axis(call.classes.new(times), len(shape) - 3, len(shape))
    return Labels(shape, (*found.planes, heads))


def expanded(call: Call) -> Found:
    return moves.expand(call.classes, call.labels[0], call.shape)


def filled(call: Call) -> Found:
    return moves.filled(call.classes, call.shape)


def padded(call: Call) -> Found:
    if packet(call.node) is aten.pad and call.arg(2, "mode", "constant") != "constant":
        return spatial(call)
    return moves.pad(call.classes, call.labels[0], call.args[1], call.shape)


def interleaved(call: Call) -> Found:
    """One position repeated is as many new ones, as in ``expand``: a key that all heads share."""
    made, axis = mover(call), call.arg(2, "dim")
    assert isinstance(made, Labels)
    if axis is None or call.labels[0].shape[axis] > 1 or not isinstance(call.node.args[1], int):
        return made
    fresh = on_axis(call.classes.new(call.args[1]), axis % len(call.shape), len(call.shape))
    return Labels(made.shape, (*made.planes, fresh))


def spatial(call: Call) -> Found:
    found: Found = layers.spatial(call.classes, call.labels[0], call.value, call.why)
    return found


def channel_norm(call: Call) -> Found:
    own = bool(call.args[5])  # "training" of batch norm, "use_input_stats" of instance norm
    weights = call.optional(1, 2, 3, 4)
    return layers.channel_norm(call.classes, call.labels[0], weights, call.why, own_statistics=own)


def group_norm(call: Call) -> Found:
    return layers.group_norm(call.classes, call.labels[0], call.args[1], call.optional(2, 3), call.why)


def layer_norm(call: Call) -> Found:
    why = f"{call.why}: its statistics are over the units"
    weights = call.optional(2, 3)
    return layers.axis_norm(call.classes, call.labels[0], len(call.args[1]), weights, why, exact=False)


def rms_norm(call: Call) -> Found:
    return layers.axis_norm(
        call.classes, call.labels[0], len(call.args[1]), call.optional(2), call.why, exact=True
    )


def summed(call: Call) -> Found:
    return reduction(call, sums=True)


def reduced(call: Call) -> Found:
    return reduction(call, sums=False)


def reduction(call: Call, *, sums: bool) -> Found:
    if len(call.labels) > 1 and call.labels[1] is not None:
        return pointwise(call)  # the larger of two tensors
    axes = call.arg(2 if packet(call.node) in (aten.linalg_vector_norm, aten.norm) else 1, "dim")
    axes = [axes] if isinstance(axes, int) else list(axes or [])
    found: Found = layers.reduce(call.classes, call.labels[0], call.value, axes, call.why, sums=sums)
    return found


def along_axis(call: Call) -> Found:
    axis = call.arg(1, "dim", -1)
    if isinstance(call.value, Tensor) and call.value.shape == call.args[0].shape and isinstance(axis, int):
        rule = layers.softmax if packet(call.node) in layers.SOFTMAXES else layers.along
        return rule(call.classes, call.labels[0], axis, f"{call.why}: units see each other there")
    return frozen(call)


def embedding(call: Call) -> Found:
    return layers.embedding(call.classes, call.labels[0], call.labels[1], call.shape, call.why)


def glu(call: Call) -> Found:
    """The first half times the sigmoid of the second."""
    axis = call.arg(1, "dim", -1)
    how = moves.Move(aten.chunk.default, (2, axis), {})
    halves = moves.move(call.classes, how, call.labels[0], call.args[0].chunk(2, axis), call.why)
    return merge(call.classes, halves, call.shape, call.why)


def gathered(call: Call) -> Found:
    axis = call.arg(1, "dim") % len(call.shape)
    x = call.labels[0]
    for plane in x.along(axis):
        call.classes.freeze(plane, call.why)
    beside = Labels(moves.squashed(x.shape, axis), without(x, axis).planes)
    return merge(call.classes, [beside, call.labels[2]], call.shape, call.why)


def bilinear(call: Call) -> Found:
    left, right, weight = call.labels[:3]
    classes, (outs, ones, others) = call.classes, (recurrent.axis_labels(call.labels[2], a) for a in range(3))
    classes.unify(ones, recurrent.features(classes, left, call.why), call.why)
    classes.unify(others, recurrent.features(classes, right, call.why), call.why)
    ndim = len(call.shape)
    made = Labels(call.shape, (on_axis(outs, ndim - 1, ndim),) if weight.shape[0] > 1 else ())
    return merge(classes, [made, *call.optional(3)], call.shape, call.why)


def cell(call: Call) -> Found:
    """One step of an LSTM or a GRU."""
    gates = {aten.lstm_cell: 4, aten.gru_cell: 3}.get(packet(call.node), 1)
    states = call.labels[1] if isinstance(call.labels[1], list) else [call.labels[1]]
    feature = recurrent.features(call.classes, call.labels[0], call.why)
    unit, _ = recurrent.one_cell(call.classes, gates, call.optional(2, 3, 4, 5), feature, False, call.why)
    for state in states:
        call.classes.unify(unit, recurrent.features(call.classes, state, call.why), call.why)
    results = call.value if isinstance(call.value, (tuple, list)) else [call.value]
    found = [Labels(tuple(result.shape), (unit.reshape(1, -1),)) for result in results]
    return found if isinstance(call.value, (tuple, list)) else found[0]


def prelu(call: Call) -> Found:
    x, weight = call.labels[0], call.labels[1]
    return merge(call.classes, [x, layers.channel_vector(weight, len(x.shape))], call.shape, call.why)


def weight_norm(call: Call) -> Found:
    return layers.weight_norm(call.classes, call.labels[0], call.labels[1], call.why)


def recurrence(call: Call) -> Found:
    kind = packet(call.node)
    states = call.labels[1] if isinstance(call.labels[1], list) else [call.labels[1]]
    nodes: Any = call.node.args[1]
    made = [is_filled(node) for node in (nodes if isinstance(nodes, (list, tuple)) else [nodes])]
    given = [None if free else state for free, state in zip(made, states)]
    parts = (call.labels[0], given, call.labels[2])
    return recurrent.recurrent(call.classes, kind, parts, call.args[3:9], call.value, call.why)


def is_filled(node: Any) -> bool:
    return isinstance(node, Node) and packet(node) in moves.FILLED and len(node.users) == 1


def frozen(call: Call) -> Found:
    """Fail closed: everything that an operation without a rule touches stays."""
    for labels in call.tensors():
        for plane in labels.planes:
            call.classes.freeze(plane, f"{call.why}: no rule for this operation")
    results = call.value if isinstance(call.value, (tuple, list)) else [call.value]
    found = [Labels(tuple(result.shape)) if isinstance(result, Tensor) else Labels(()) for result in results]
    return found if isinstance(call.value, (tuple, list)) else found[0]


RULES: dict[Any, Callable[[Call], Found]] = {
    aten.cat: concatenated, aten.concat: concatenated, aten.concatenate: concatenated, aten.stack: stacked,
    aten.linear: linear, aten.conv1d: convolution, aten.conv2d: convolution, aten.conv3d: convolution,
    aten.conv_transpose1d: convolution_transposed, aten.conv_transpose2d: convolution_transposed,
    aten.conv_transpose3d: convolution_transposed, aten.matmul: product, aten.mm: product, aten.bmm: product,
    aten.mv: product, aten.dot: product, aten.addmm: product_plus, aten.baddbmm: product_plus,
    aten.einsum: einsum, aten.scaled_dot_product_attention: attention, aten.batch_norm: channel_norm,
    aten.instance_norm: channel_norm, aten.group_norm: group_norm, aten.layer_norm: layer_norm,
    aten.rms_norm: rms_norm, aten.embedding: embedding, aten.prelu: prelu, aten._weight_norm: weight_norm,
    aten._weight_norm_interface: weight_norm, aten.glu: glu, aten.channel_shuffle: shuffled,
    aten.repeat_interleave: interleaved,
    aten.native_channel_shuffle: shuffled, aten.gather: gathered, aten.bilinear: bilinear,
    aten.lstm_cell: cell, aten.gru_cell: cell, aten.rnn_tanh_cell: cell, aten.rnn_relu_cell: cell,
}  # fmt: skip
FAMILIES: tuple[tuple[Any, Callable[[Call], Found]], ...] = (
    (moves.MOVES, mover), (moves.SAME, same), (moves.EXPANDS, expanded), (moves.FILLED, filled),
    (moves.LIKE, same), (moves.PADS, padded), (moves.INDEXES, indexed), (layers.SPATIAL, spatial),
    (layers.SUMS | layers.MEANS, summed), (layers.OTHER_REDUCTIONS, reduced), (layers.ALONG, along_axis),
    (recurrent.GATES, recurrence),
)  # fmt: skip
