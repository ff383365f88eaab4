"""A ``.tflite`` file: its ends given the user's names and float types, and what an interpreter runs of it.

The converter names inputs ``args_0`` and so on, and leaves a model that is rounded throughout with INT8
inputs and outputs; then each caller would have to round by the file's own scales.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flatbuffers
import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

if TYPE_CHECKING:
    from karui.artifact import Port, Signature
    from karui.data import Array

ALIGNMENT = 16  # of stored tensors, in bytes, as the schema wants it
MATRIX_AT = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1, "CONV_3D": 1}
DELEGATE = "DELEGATE"
ONCE = "DENSIFY"  # puts a stored matrix together, when the file is opened


def finish(path: Path, signature: Signature) -> None:
    """Give the file at ``path`` the names and types of ``signature``'s inputs and outputs."""
    model = flatbuffer_utils.read_model(path)
    for called in model.signatureDefs:
        graph = model.subgraphs[called.subgraphIndex]
        for entry, port in paired(called.inputs, signature.inputs):
            end(model, graph, entry, port, graph.inputs, "QUANTIZE")
        for entry, port in paired(called.outputs, signature.outputs):
            end(model, graph, entry, port, graph.outputs, "DEQUANTIZE")
    save(model, path)


def save(model: Any, path: Path) -> None:
    builder = Aligned(0)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(builder.Output())


class Aligned(flatbuffers.Builder):  # type: ignore[misc]
    """Puts stored tensors where kernels may read them in place."""

    def CreateNumpyVector(self, array: Array) -> Any:  # noqa: N802
        self.Prep(ALIGNMENT, array.nbytes)
        return flatbuffers.Builder.CreateNumpyVector(self, array)


def paired(entries: Sequence[Any], ports: Sequence[Port]) -> Iterator[tuple[Any, Port]]:
    """A signature's inputs or outputs (``args_0``, ``args_1``) beside their ports."""
    numbered = sorted(entries, key=lambda entry: int(entry.name.rpartition(b"_")[2]))
    return iter(zip(numbered, ports, strict=True))


def end(model: Any, graph: Any, entry: Any, port: Port, ends: list[int], kind: str) -> None:
    """Name one input or output; put a float tensor before or behind it where it is of integers."""
    entry.name = port.name.encode()
    inner = graph.tensors[entry.tensorIndex]
    if inner.type != schema.TensorType.INT8 or np.dtype(port.dtype).kind != "f":
        return
    outer = copy.copy(inner)
    outer.name, outer.type, outer.quantization = entry.name, schema.TensorType.FLOAT32, None
    graph.tensors.append(outer)
    pair = [len(graph.tensors) - 1, entry.tensorIndex]
    ends[ends.index(entry.tensorIndex)] = entry.tensorIndex = pair[0]
    operation = schema.OperatorT()
    operation.opcodeIndex = code(model, getattr(schema.BuiltinOperator, kind))
    operation.inputs, operation.outputs = (
        ([pair[0]], [pair[1]]) if kind == "QUANTIZE" else (pair[1:], pair[:1])
    )
    graph.operators.insert(0 if kind == "QUANTIZE" else len(graph.operators), operation)


def code(model: Any, number: int, version: int = 2) -> int:
    """The index of an operation among those that the file uses; added where it is not.

    version: of the operation; 2 is the first in which QUANTIZE and DEQUANTIZE know signed integers.
    """
    known = [flatbuffer_utils.get_builtin_code_from_operator_code(one) for one in model.operatorCodes]
    if number not in known:
        added = schema.OperatorCodeT()
        added.builtinCode = added.deprecatedBuiltinCode = number
        added.version = version
        model.operatorCodes.append(added)
        known.append(number)
    return known.index(number)


@dataclass(frozen=True)
class Kernel:
    """An operation of an opened file.

    taken: by the XNNPACK delegate. integers: whether its stored matrix, or else what it reads, is of INT8.
    scales: of its matrix, where that is of INT8.
    """

    name: str
    taken: bool
    integers: bool
    scales: Array | None = None

    @property
    def is_product(self) -> bool:
        """A convolution or a product with a stored matrix."""
        return self.name in MATRIX_AT


def kernels(path: Path) -> list[Kernel]:
    """What runs in the file's first signature, as a freshly opened interpreter tells it.

    After allocation its list holds the delegate's calls behind the operations that they stand for.
    """
    opened = litert.Interpreter(str(path), num_threads=1)
    opened.allocate_tensors()
    nodes = opened._get_ops_details()
    calls = [node for node in nodes if node["op_name"] == DELEGATE]
    plain = [node for node in nodes if node["op_name"] != DELEGATE]
    done = covered(calls, plain)
    running = [node for node in plain if node["op_name"] != ONCE]
    return [told(opened, node, taken=node["index"] in done) for node in running]


def covered(calls: Sequence[Any], plain: Sequence[Any]) -> Collection[int]:
    """The operations between what each call of a delegate gives and what it reads."""
    writer = {output: node for node in plain for output in node["outputs"]}
    found: set[int] = set()
    for call in calls:
        given, wanted = {*call["inputs"]}, [*call["outputs"]]
        while wanted:
            tensor = wanted.pop()
            if tensor in writer and tensor not in given and writer[tensor]["index"] not in found:
                found.add(writer[tensor]["index"])
                wanted += [*writer[tensor]["inputs"]]
    return found


def told(opened: Any, node: Any, *, taken: bool) -> Kernel:
    name, kinds = node["op_name"], node["operand_types"]
    if name not in MATRIX_AT:
        return Kernel(name, taken, bool(kinds) and kinds[0] is np.int8)
    matrix = kinds[MATRIX_AT[name]]
    details = opened._get_tensor_details(node["inputs"][MATRIX_AT[name]], 0)
    scales = details["quantization_parameters"]["scales"] if matrix is np.int8 else None
    return Kernel(name, taken, matrix is np.int8, scales)
