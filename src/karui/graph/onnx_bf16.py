"""ONNX files in bfloat16, and the same computed in float with every value rounded.

The file is plain: weights and arithmetic in bfloat16, inputs and answers in float32. ONNX Runtime has no such
kernels on a CPU, so there each result is computed in float32 and rounded, as bfloat16 kernels do it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from karui.errors import Unsupported
from karui.graph.onnx import every_node
from karui.graph.tensorrt.seen import Seen

OPSET = 22  # the first whose convolutions, pools and recurrent layers take bfloat16
FLOAT, BF16 = TensorProto.FLOAT, TensorProto.BFLOAT16
ALWAYS_FLOAT = {"Resize": (1, 2)}  # inputs that ONNX wants in float32: regions and scales


def to_bf16(exported: Path, model: Path) -> None:
    """Write ``exported``, an FP32 file, in bfloat16. Raises Unsupported for an opset that has it not."""
    made = onnx.load(str(exported))
    version = next(entry.version for entry in made.opset_import if entry.domain in ("", "ai.onnx"))
    if version < OPSET:
        raise Unsupported(
            f"ONNX opset {version} has no convolution in bfloat16", fix=f"opset={OPSET}, or fp16@tensorrt"
        )
    graph = made.graph
    kept = {
        node.input[i]
        for node in every_node(graph)
        for i in ALWAYS_FLOAT.get(node.op_type, ())
        if i < len(node.input)
    }
    for tensor in graph.initializer:
        if tensor.data_type == FLOAT and tensor.name not in kept:
            tensor.CopyFrom(rounded(tensor))
    for node in every_node(graph):
        for one in node.attribute:
            if one.type == onnx.AttributeProto.TENSOR and one.t.data_type == FLOAT:
                one.t.CopyFrom(rounded(one.t))
            elif node.op_type == "Cast" and one.name == "to" and one.i == FLOAT:
                one.i = BF16
    del graph.value_info[:]  # of the float model
    cast_ends(graph)
    onnx.save(made, str(model))


def rounded(tensor: Any) -> Any:
    """To the nearest, ties to even."""
    array = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(BF16)), tensor.name)


def cast_ends(graph: Any) -> None:
    """Float inputs are cast on the way in, float answers on the way out."""
    inner = {}
    for value in graph.input:
        if value.type.tensor_type.elem_type == FLOAT:
            inner[value.name] = f"{value.name}_bf16"
    answers = [value.name for value in graph.output if value.type.tensor_type.elem_type == FLOAT]
    inside = {name: f"{name}_inside" for name in answers}
    for node in every_node(graph):
        for names, moved in ((node.input, inner | inside), (node.output, inside)):
            for i, name in enumerate(names):
                names[i] = moved.get(name, name)
    first = [
        helper.make_node("Cast", [name], [cast], f"{cast}_Cast", to=BF16) for name, cast in inner.items()
    ]
    for node in reversed(first):
        graph.node.insert(0, node)
    graph.node.extend(
        helper.make_node("Cast", [inside[name]], [name], f"{name}_Cast", to=FLOAT) for name in answers
    )


def in_float(model: Any) -> Any:
    """A file in bfloat16 with the arithmetic in float32: each result is rounded to bfloat16 and widened."""
    types = Seen(model).types
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    for tensor in graph.initializer:
        if tensor.data_type == BF16:
            array = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    nodes = list(graph.node)
    del graph.node[:], graph.value_info[:]
    for node in nodes:
        graph.node.extend(widened(node, types))
    return wide


def widened(node: Any, types: dict[str, str]) -> list[Any]:
    """A node in float32, and for each result that was bfloat16 the rounding."""
    found = [node]
    for one in node.attribute:
        if one.type == onnx.AttributeProto.TENSOR and one.t.data_type == BF16:
            one.t.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(one.t).astype("float32"), one.t.name)
            )
        elif node.op_type == "Cast" and one.name == "to" and one.i == BF16:
            one.i = FLOAT
    for i, name in enumerate(node.output):
        if types.get(name) == "BFLOAT16":
            node.output[i] = f"{name}_wide"
            found.append(helper.make_node("Cast", [f"{name}_wide"], [f"{name}_16"], to=BF16))
            found.append(helper.make_node("Cast", [f"{name}_16"], [name], to=FLOAT))
    return found
