"""An ONNX model with what rules ask of it: producers, readers, stored values, types and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from karui.errors import BuildFailed, foreign
from karui.graph.onnx import every_node

LARGE = 1 << 20  # values of tensors of more bytes say nothing about shapes


@dataclass(frozen=True)
class Violation:
    """where: the node's or tensor's name. what, why, fix: as in every error of karui."""

    where: str
    what: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} ({self.why}); try: {self.fix}"


class Seen:
    """Of a whole model, the graphs inside of branches and loops included."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(every_node(model.graph))
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.stored = {tensor.name: tensor for tensor in stored_in(model.graph, self.nodes)}
        self.types, self.shapes = typed(model, self.stored)

    def value(self, name: str) -> np.ndarray[Any, Any] | None:
        """A stored tensor's value; None where it is computed."""
        return numpy_helper.to_array(self.stored[name]) if name in self.stored else None

    def source(self, name: str) -> str:
        """The tensor before its axes were moved."""
        while (node := self.producer.get(name)) is not None and node.op_type in ("Transpose", "Identity"):
            name = node.input[0]
        return name

    def made_by(self, name: str) -> str:
        """The operator that computes a tensor; empty for what is stored or given."""
        return str(self.producer[name].op_type) if name in self.producer else ""


def stored_in(graph: Any, nodes: Sequence[Any]) -> Iterator[Any]:
    """Initializers of a graph and of those inside it, and constants under the names of their outputs."""
    yield from graph.initializer
    for node in nodes:
        for one in node.attribute:
            for inner in (one.g, *one.graphs):
                yield from inner.initializer
            if node.op_type == "Constant" and one.name == "value":
                tensor = onnx.TensorProto()
                tensor.CopyFrom(one.t)
                tensor.name = node.output[0]
                yield tensor


def typed(model: Any, stored: dict[str, Any]) -> tuple[dict[str, str], dict[str, list[int | None]]]:
    """Element types by name, and shapes (None for what is not a fixed number)."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    for tensor in small.graph.initializer:
        if tensor.ByteSize() > LARGE:
            tensor.ClearField("raw_data")
    for sparse in small.graph.sparse_initializer:  # types are checked for dense ones only
        name, kind = sparse.values.name, sparse.values.data_type
        small.graph.initializer.add(name=name, data_type=kind, dims=sparse.dims)
    del small.graph.sparse_initializer[:]
    with foreign(BuildFailed, "the types in the ONNX file do not fit together"):
        found = onnx.shape_inference.infer_shapes(small, check_type=True, strict_mode=True).graph
    types = {name: type_name(tensor.data_type) for name, tensor in stored.items()}
    shapes: dict[str, list[int | None]] = {name: list(tensor.dims) for name, tensor in stored.items()}
    for value in (*found.input, *found.value_info, *found.output):
        tensor = value.type.tensor_type
        is_tensor = value.type.HasField("tensor_type")
        types[value.name] = type_name(tensor.elem_type) if is_tensor else "that is no tensor"
        if tensor.HasField("shape"):
            shapes[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    return types, shapes


def type_name(elem_type: int) -> str:
    return str(onnx.TensorProto.DataType.Name(elem_type))


def called(node: Any) -> str:
    return str(node.name or (node.output[0] if node.output else node.op_type))


def attribute(node: Any, name: str, default: Any = None) -> Any:
    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)
