"""An ONNX file without what every reader of it knows anyway: in small INT8 models a third of the bytes.

Gone are shapes between the nodes, attributes that say the default, the zero points of biases, second copies
of a zero point, and the names of quantization's own nodes and values. Ports, weights and layers keep their
names; the numbers and the kernels stay as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from karui.errors import BuildFailed, foreign
from karui.graph.onnx import drop_unread

PAIRS = ("QuantizeLinear", "DequantizeLinear")
NEUTRAL = {"strides": 1, "dilations": 1, "pads": 0}  # of convolutions and pools; their schemas do not tell


def lean(path: Path) -> int:
    """Rewrite an ONNX file so; gives how many bytes it became smaller. One with weights beside it stays."""
    with foreign(BuildFailed, "the ONNX file could not be written without what is known anyway"):
        model = ir.load(path)
        if any(isinstance(value.const_value, ir.ExternalTensor) for value in stored(model.graph)):
            return 0
        before = path.stat().st_size
        for node in model.graph.all_nodes():
            drop_defaults(node, model.opset_imports.get(node.domain))
            drop_zero(node)
        share(model.graph)
        drop_unread(model.graph)
        rename_pairs(model.graph)
        for value in (*stored(model.graph), *between(model.graph)):
            if not is_port(value):
                value.shape = value.type = None
        ir.save(model, path)
        return before - path.stat().st_size


def stored(graph: Any) -> Iterator[Any]:
    yield from graph.initializers.values()
    for inner in graph.subgraphs():
        yield from inner.initializers.values()


def between(graph: Any) -> Iterator[Any]:
    for node in graph.all_nodes():
        yield from node.outputs


def is_port(value: Any) -> bool:
    """Whether the world outside knows it: of the model, or of one of its branches and loops."""
    return bool(value.is_graph_input() or value.is_graph_output())


def drop_defaults(node: Any, opset: int | None) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.value == default_of(node, name, opset) or is_neutral(node, name, attribute.value):
            del node.attributes[name]


def default_of(node: Any, name: str, opset: int | None) -> Any:
    """The default of an attribute of a standard operator; None where there is none."""
    if node.domain not in ("", "ai.onnx") or opset is None:
        return None
    known = onnx.defs.get_schema(node.op_type, opset, "").attributes.get(name)
    if known is None or known.default_value.type == onnx.AttributeProto.UNDEFINED:
        return None
    value = onnx.helper.get_attribute_value(known.default_value)
    return value.decode() if isinstance(value, bytes) else value


def is_neutral(node: Any, name: str, value: Any) -> bool:
    spatial = node.op_type.endswith(("Conv", "Pool")) and node.domain == ""
    return spatial and name in NEUTRAL and set(value) == {NEUTRAL[name]}


def drop_zero(node: Any) -> None:
    """Take off the zero point of a bias; none given means zero.

    A weight's has to stay: without it ONNX Runtime does not join the layer with its quantization.
    """
    bias = node.op_type == "DequantizeLinear" and node.inputs[0].dtype == ir.DataType.INT32
    if bias and len(node.inputs) > 2:
        node.resize_inputs(2)


def share(graph: Any) -> None:
    """Let all pairs read the same copy of equal zero points."""
    known: dict[tuple[Any, ...], Any] = {}
    for node in pairs(graph):
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is None or not zero.is_initializer() or is_port(zero):
            continue
        array = zero.const_value.numpy()
        first = known.setdefault((array.dtype.str, array.shape, array.tobytes()), zero)
        node.replace_input_with(2, first)


def pairs(graph: Any) -> Iterator[Any]:
    return (node for node in graph if node.op_type in PAIRS)


def rename_pairs(graph: Any) -> None:
    """Short names for what quantization added: its values, scales and zero points."""
    taken = {value.name for value in (*graph.inputs, *stored(graph), *between(graph), *graph.outputs)}
    short = (name for i in range(10**9) if (name := f"q{i}") not in taken)
    for node in pairs(graph):
        node.name = None
        scales = [value for value in node.inputs[1:] if value is not None and value.is_initializer()]
        for value in (*scales, *node.outputs):
            if not is_port(value) and not known_short(value.name):
                value.name = next(short)


def known_short(name: str) -> bool:
    return name.startswith("q") and name[1:].isdigit()
