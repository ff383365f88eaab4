"""A program with stored weights as an ONNX model.

Products become ``com.microsoft.MatMulNBits``, which ONNX Runtime computes and OpenVINO reads; or, as plain
ONNX of opset 21, ``DequantizeLinear`` in blocks before the product. Embeddings are looked up as whole numbers
with their scale, in plain operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript import values

from karui.errors import BuildFailed, foreign
from karui.graph.onnx import as_onnx, drop_unread, path_of, write
from karui.graph.program import export
from karui.graph.ranges.emit_onnx import add
from karui.graph.ranges.places import layer_of
from karui.graph.weights.groups import Stored, middle, nibbles
from karui.graph.weights.options import Packing, Writing
from karui.graph.weights.store import OP, WeightOnly, weight_only

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from karui.runtimes import Source

DOMAIN, MICROSOFT = "karui", "com.microsoft"
SCHEMA = OpSchema(
    "Stored",
    DOMAIN,
    1,
    inputs=[OpSchema.FormalParameter("weight", "tensor(float)")],
    outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
    attributes=[OpSchema.Attribute("number", OpSchema.AttrType.INT)],
)
STORED = values.Op(values.Opset(DOMAIN, 1), "Stored", SCHEMA)


def translated(weight, number: int):  # type: ignore[no-untyped-def]
    return STORED(weight, number=number)


def write_weights(source: Source, packing: Packing, how: Writing, opset: int, model: Path) -> WeightOnly:
    """``source`` with its weights stored as asked, written as the file ``model``."""
    found = weight_only(source, packing)
    program = export(found.graph, source.signature, source.probe)
    made = as_onnx(program, source.signature, opset, {OP: translated})
    with foreign(BuildFailed, "the model with stored weights could not be written as ONNX"):
        emit(made, found.stored, how)
    write(made, model, beside=source.program is not None)
    return found


def emit(model: Any, stored: Sequence[Stored], how: Writing) -> None:
    """Replace each mark, and the product or look-up that reads it, in place."""
    for node in list(model.graph):
        if node.op_type != "Stored" or node.domain != DOMAIN:
            continue
        one = stored[node.attributes["number"].as_int()]
        for reader, transposed in readers(node.outputs[0]):
            if reader.op_type == "Gather":
                look_up(model.graph, reader, one)
            elif how.form == "nbits":
                multiply(model.graph, reader, one, how.accuracy_level)
            else:
                dequantize(model.graph, reader, one, transposed=transposed)
    model.opset_imports.pop(DOMAIN, None)
    if how.form == "nbits":
        model.opset_imports[MICROSOFT] = 1
    drop_unread(model.graph)


def readers(value: Any) -> list[tuple[Any, bool]]:
    """The operations that multiply by a weight or look into it, and whether it is transposed for them."""
    found: list[tuple[Any, bool]] = []
    for reader, _ in value.uses():
        if reader.op_type == "Transpose":
            found += [(user, True) for user, _ in reader.outputs[0].uses()]
        else:
            turned = "transB" in reader.attributes and reader.attributes["transB"].as_int() == 1
            found.append((reader, turned))
    for reader, transposed in found:
        known = reader.op_type == "Gather" or (reader.op_type in ("Gemm", "MatMul") and transposed)
        if not known:
            raise BuildFailed(f"a stored weight is read by {reader.op_type}", why="this has no form for it")
    return found


def multiply(graph: Any, node: Any, one: Stored, accuracy_level: int) -> None:
    """``x @ W' (+ bias)`` as MatMulNBits, with the bias added afterwards."""
    rows, columns = one.whole.shape
    attributes = {
        "K": columns,
        "N": rows,
        "bits": one.bits,
        "block_size": one.group,
        "accuracy_level": accuracy_level,
    }
    arrays = packed(one)
    parts = [once(graph, f"{one.path}_{name}", array) for name, array in arrays.items()]
    product = ir.node("MatMulNBits", [node.inputs[0], *parts], attributes, domain=MICROSOFT)
    finish(graph, node, product, f"{layer_of(one.path)}/MatMulNBits")


def packed(one: Stored) -> dict[str, np.ndarray[Any, Any]]:
    """As MatMulNBits stores it: (rows, groups, bytes), scales and zero points one row after the other."""
    rows, columns = one.whole.shape
    groups = one.scale.shape[1]
    zero = one.zero.numpy().astype(np.uint8)
    whole = np.repeat(zero, one.group, 1)
    whole[:, :columns] = one.whole.numpy().astype(np.uint8)
    whole = whole.reshape(rows, groups, one.group)
    found = {"whole": nibbles(whole) if one.bits == 4 else whole, "scale": one.scale.numpy().reshape(-1)}
    if not one.symmetric:
        found["zero"] = (nibbles(zero) if one.bits == 4 else zero).reshape(-1)
    return found


def dequantize(graph: Any, node: Any, one: Stored, *, transposed: bool) -> None:
    """The product as it is, on a weight behind DequantizeLinear, stored as the product reads it."""
    assert transposed
    kind: Any = ml_dtypes.uint4 if one.bits == 4 else np.uint8
    arrays = {"whole": one.whole, "scale": one.scale, "zero": one.zero}
    parts = [
        once(
            graph,
            f"{one.path}_{name}",
            np.ascontiguousarray(value.numpy().T).astype(np.float32 if name == "scale" else kind),
        )
        for name, value in arrays.items()
    ]
    floats = ir.node("DequantizeLinear", parts, {"axis": 0, "block_size": one.group})
    floats.name = floats.outputs[0].name = f"{layer_of(one.path)}/DequantizeLinear_{len(graph)}"
    floats.outputs[0].dtype = ir.DataType.FLOAT
    floats.outputs[0].shape = ir.Shape(one.whole.shape[::-1])
    graph.insert_before(node, floats)
    product = ir.node("MatMul", [node.inputs[0], floats.outputs[0]])
    finish(graph, node, product, f"{layer_of(one.path)}/MatMul")


def finish(graph: Any, node: Any, product: Any, name: str) -> None:
    """Put ``product`` in the place of a Gemm or MatMul, and the bias of a Gemm after it."""
    old = node.outputs[0]
    taken = sum(other.name.partition("#")[0] == name for other in graph if other.name)
    product.name = f"{name}#{taken}" if taken else name
    product.outputs[0].name = f"{old.name}_product"
    product.outputs[0].shape, product.outputs[0].dtype = old.shape, old.dtype
    new = [product]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        added = ir.node("Add", [product.outputs[0], node.inputs[2]])
        added.name = added.outputs[0].name = f"{product.name}_Add"
        added.outputs[0].shape, added.outputs[0].dtype = old.shape, old.dtype
        new.append(added)
    graph.insert_before(node, new)
    take_over(graph, node, new[-1].outputs[0])


def look_up(graph: Any, node: Any, one: Stored) -> None:
    """Rows of whole numbers and of scales, multiplied: the table itself is never unpacked."""
    whole = once(graph, f"{one.path}_rows", (one.whole.to(torch.int16) - middle(8)).numpy().astype(np.int8))
    scale = once(graph, f"{one.path}_row_scale", one.scale.numpy())
    attributes = {"axis": 0}
    steps = [
        ir.node("Gather", [whole, node.inputs[1]], attributes),
        ir.node("Gather", [scale, node.inputs[1]], attributes),
    ]
    steps.append(ir.node("Cast", [steps[0].outputs[0]], {"to": ir.DataType.FLOAT.value}))
    steps.append(ir.node("Mul", [steps[2].outputs[0], steps[1].outputs[0]]))
    for name, step in zip(("rows", "scale", "Cast", "Mul"), steps):
        step.name = step.outputs[0].name = f"{layer_of(one.path)}/{name}_{node.outputs[0].name}"
    graph.insert_before(node, steps)
    take_over(graph, node, steps[-1].outputs[0])


def take_over(graph: Any, node: Any, value: Any) -> None:
    """Let ``value`` be what ``node`` gave, under the same name: it may be an answer of the model."""
    old = node.outputs[0]
    name, value.shape, value.dtype = old.name, old.shape, old.dtype
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    value.name = name


def answering(path: Path) -> dict[str, str]:
    """By the name of an answer of a written model, the layer that gives it."""
    graph = onnx.load(str(path), load_external_data=False).graph
    made = {name: node for node in graph.node for name in node.output}
    found = {}
    for output in graph.output:
        node = made.get(output.name)
        if node is not None and node.op_type == "Add":
            node = made.get(node.input[0])
        if node is not None and node.op_type == "MatMulNBits":
            found[output.name] = path_of(node.name)
    return found


def once(graph: Any, name: str, array: np.ndarray[Any, Any]) -> Any:
    """The stored array of that name, added when it is first asked for."""
    known = graph.initializers.get(name)
    return add(graph, name, array) if known is None else known
