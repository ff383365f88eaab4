"""A program with ``karui::fake_quant`` as an ONNX model with QuantizeLinear and DequantizeLinear.

Weights are stored as integers behind one DequantizeLinear, already transposed where a product wants them
so; activations pass a pair. Biases become 32-bit integers on the scale of their products where the runtime
wants that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript import values

from karui.artifact import Signature
from karui.errors import BuildFailed, foreign
from karui.graph.onnx import as_onnx, drop_unread, write
from karui.graph.program import export
from karui.graph.ranges.insert import OP
from karui.graph.ranges.places import Profile, layer_of
from karui.graph.ranges.program import Quantized, quantized

if TYPE_CHECKING:
    from pathlib import Path

    from karui.runtimes import Source

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DOMAIN = "karui"
SCHEMA = OpSchema(
    "FakeQuant",
    DOMAIN,
    1,
    inputs=[OpSchema.FormalParameter(name, "tensor(float)") for name in ("x", "scale", "zero_point")],
    outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
    attributes=[OpSchema.Attribute(name, OpSchema.AttrType.INT) for name in ("low", "high", "axis")],
)
MOVES = (
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Expand", "Gather",
    "Identity",
)  # fmt: skip
FAKE_QUANT = values.Op(values.Opset(DOMAIN, 1), "FakeQuant", SCHEMA)


def from_table(source: Source, profile: Profile, observer: str, opset: int, model: Path) -> Quantized:
    """Static INT8 of ``source`` from its table of ranges, written as the file ``model``."""
    found = quantized(source, profile, observer)
    program = export(found.graph, source.signature, source.calibrate)
    write(emit(program, source.signature, opset, profile), model)
    return found


def translated(x, scale, zero_point, low: int, high: int, axis: int):  # type: ignore[no-untyped-def]
    return FAKE_QUANT(x, scale, zero_point, low=low, high=high, axis=axis)


def emit(program: torch.export.ExportedProgram, signature: Signature, opset: int, profile: Profile) -> Any:
    """The ``onnx_ir`` model."""
    model = as_onnx(program, signature, opset, {OP: translated})
    with foreign(BuildFailed, "the quantized model could not be written as ONNX"):
        for node in list(model.graph):
            if node.op_type == "FakeQuant" and node.domain == DOMAIN:
                store(model.graph, node) if is_stored(node.inputs[0]) else pair(model.graph, node)
        for node in list(model.graph):
            if node.op_type == "Transpose" and dequantized(node.inputs[0]):
                transpose(model.graph, node)
        name_layers(model.graph)
        if profile.bias == "int32":
            for node in list(model.graph):
                if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
                    store_bias(model.graph, node)
                    shield(model.graph, node)
        model.opset_imports.pop(DOMAIN, None)
        drop_unread(model.graph)
    return model


def is_stored(value: Any) -> bool:
    return value is not None and value.is_initializer() and value.const_value is not None


def constant(value: Any) -> np.ndarray[Any, Any]:
    tensor: Any = ir.convenience.get_const_tensor(value)
    return np.asarray(tensor.numpy())


def grid(node: Any) -> tuple[int, ...]:
    return tuple(node.attributes[name].as_int() for name in ("low", "high", "axis"))


def parameters(graph: Any, node: Any, stem: str) -> tuple[Any, Any]:
    """Scale and zero point of a FakeQuant as stored values of the types that ONNX wants."""
    low, _, axis = grid(node)
    kind = np.uint8 if low >= 0 else np.int8
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
    shape: tuple[int, ...] = () if axis < 0 else (-1,)
    return (
        add(graph, f"{stem}_scale", scale.reshape(shape)),
        add(graph, f"{stem}_zero_point", np.rint(zero).astype(kind).reshape(shape)),
    )


def add(graph: Any, name: str, array: np.ndarray[Any, Any]) -> Any:
    taken, plain, again = graph.initializers, name, 0
    while name in taken:
        again += 1
        name = f"{plain}_{again}"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.initializers[name] = value
    return value


def store(graph: Any, node: Any) -> None:
    """A weight: integers, and one DequantizeLinear."""
    weight, (low, high, axis) = node.inputs[0], grid(node)
    scale, zero = parameters(graph, node, weight.name)
    array = constant(weight)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    steps = constant(scale).reshape(shape), constant(zero).reshape(shape).astype(np.float32)
    integers = np.clip(np.rint(array / steps[0]) + steps[1], low, high).astype(constant(zero).dtype)
    value = add(graph, f"{weight.name}_quantized", integers)
    attributes = {"axis": axis} if axis >= 0 else {}
    replace(graph, node, [ir.node("DequantizeLinear", [value, scale, zero], attributes)], weight.name)


def pair(graph: Any, node: Any) -> None:
    """An activation: QuantizeLinear and DequantizeLinear."""
    if grid(node)[2] >= 0:
        raise BuildFailed("an activation has a range of each channel", why="INT8 kernels want one")
    stem = node.inputs[0].name
    scale, zero = parameters(graph, node, stem)
    quantize = ir.node("QuantizeLinear", [node.inputs[0], scale, zero])
    quantize.outputs[0].dtype = zero.dtype
    replace(graph, node, [quantize, ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero])], stem)


def replace(graph: Any, node: Any, new: list[Any], stem: str) -> None:
    old = node.outputs[0]
    for one in new:
        one.name = one.outputs[0].name = f"{stem}_{one.op_type}"
        one.outputs[0].shape = old.shape
    new[-1].outputs[0].dtype = old.dtype
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(old, new[-1].outputs[0])
    graph.remove(node, safe=True)


def dequantized(value: Any) -> bool:
    """Whether it is a stored weight behind a DequantizeLinear."""
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "DequantizeLinear" and is_stored(node.inputs[0])


def transpose(graph: Any, node: Any) -> None:
    """Store the weight as the product reads it."""
    before = node.inputs[0].producer()
    array = constant(before.inputs[0])
    order = (
        list(node.attributes["perm"].as_ints())
        if "perm" in node.attributes
        else list(range(array.ndim))[::-1]
    )
    value = add(graph, f"{before.inputs[0].name}_transposed", np.ascontiguousarray(array.transpose(order)))
    attributes = {}
    if "axis" in before.attributes:
        attributes["axis"] = order.index(before.attributes["axis"].as_int())
    new = ir.node("DequantizeLinear", [value, *before.inputs[1:]], attributes)
    replace(graph, node, [new], value.name)


def name_layers(graph: Any) -> None:
    """Call each quantized layer's node after its weight, so that it is known in the runtime's own graph."""
    taken: set[str] = set()
    for node in graph:
        weights = [value for value in node.inputs if dequantized(value)]
        if node.op_type in LAYERS and weights:
            stored = weights[0].producer().inputs[0].name.partition("_quantized")[0]
            name = f"{layer_of(stored)}/{node.op_type}"
            node.name = f"{name}_{len(taken)}" if name in taken else name
            taken.add(name)


def shield(graph: Any, node: Any) -> None:
    """Let a layer that stays in float read a rounded activation through an operation that changes nothing.

    ONNX Runtime rounds the float weights of a layer by itself, with one scale for all, where its input comes
    from a DequantizeLinear (WeightBiasQuantization), moved or not; a maximum of one operand it leaves alone.
    """
    source = node.inputs[0].producer()
    while source is not None and source.op_type in MOVES:
        source = source.inputs[0].producer()
    if source is None or source.op_type != "DequantizeLinear" or not is_stored(node.inputs[1]):
        return
    same = ir.node("Max", [node.inputs[0]])
    same.name = same.outputs[0].name = f"{node.name}_float"
    same.outputs[0].shape, same.outputs[0].dtype = node.inputs[0].shape, node.inputs[0].dtype
    graph.insert_before(node, same)
    node.replace_input_with(0, same.outputs[0])


def store_bias(graph: Any, node: Any) -> None:
    """A bias as 32-bit integers on the scale of the products it is added to."""
    bias: Any = node.inputs[2] if len(node.inputs) > 2 else None
    sources = [value.producer() for value in node.inputs[:2]]
    if not is_stored(bias) or any(one is None or one.op_type != "DequantizeLinear" for one in sources):
        return
    scale = (constant(sources[0].inputs[1]) * constant(sources[1].inputs[1])).astype(np.float32)
    array = constant(bias)
    if scale.ndim:  # a transposed convolution in groups has the scales of one group
        scale = np.tile(scale, len(array) // len(scale))
    limit = np.iinfo(np.int32)
    integers = np.clip(np.rint(array.astype(np.float64) / scale), limit.min, limit.max).astype(np.int32)
    stored = add(graph, f"{bias.name}_quantized", integers)
    steps = add(graph, f"{bias.name}_scale", scale)
    zero = add(graph, f"{bias.name}_zero_point", np.zeros(scale.shape, np.int32))
    new = ir.node("DequantizeLinear", [stored, steps, zero], {"axis": 0} if scale.ndim else {})
    new.name = new.outputs[0].name = f"{bias.name}_DequantizeLinear"
    graph.insert_before(node, new)
    node.replace_input_with(2, new.outputs[0])
