"""Float weights of a ``.tflite`` file that are mostly zero, stored as rows of what is not.

The format's own sparse tensors: values, where each row starts, and columns (CSR), which a DENSIFY in front of
the layer puts together once, when the file is opened. Every number and every kernel stay as they were. (Of
weights in INT8 XNNPACK's linear layers take no such tensor.)
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from karui.graph.tflite import MATRIX_AT, code, save

OVERHEAD = 400  # bytes of a tensor and an operation more


def pack(path: Path) -> int:
    """Rewrite a file with its sparse weights packed; gives how many bytes it became smaller.

    A file with nothing to gain is left as it is.
    """
    model = flatbuffer_utils.read_model(path)
    users: dict[int, list[tuple[Any, int]]] = defaultdict(list)
    for graph, place in matrices(model):
        users[graph.tensors[place].buffer].append((graph, place))
    packed = [buffer for buffer, found in users.items() if pack_buffer(model, buffer, found)]
    if not packed:
        return 0
    before = path.stat().st_size
    save(model, path)
    return before - path.stat().st_size


def matrices(model: Any) -> Iterator[tuple[Any, int]]:
    """The stored matrices of products: a subgraph, and the place of the tensor in it."""
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if name in MATRIX_AT}
    kinds = [flatbuffer_utils.get_builtin_code_from_operator_code(one) for one in model.operatorCodes]
    for graph in model.subgraphs:
        for operation in graph.operators:
            if (name := names.get(kinds[operation.opcodeIndex])) is not None:
                place = operation.inputs[MATRIX_AT[name]]
                tensor = graph.tensors[place]
                if tensor.type == schema.TensorType.FLOAT32 and model.buffers[tensor.buffer].data is not None:
                    yield graph, place


def pack_buffer(model: Any, buffer: int, users: list[tuple[Any, int]]) -> bool:
    """Whether the tensors that read a buffer now read what is not zero in it."""
    graph, place = users[0]
    tensor, stored = graph.tensors[place], model.buffers[buffer]
    dense = np.frombuffer(stored.data.tobytes(), np.float32).reshape(len_of(tensor))
    there = dense != 0
    columns = np.nonzero(there)[1].astype(smallest(dense.shape[1]))
    starts = np.concatenate([[0], there.sum(1).cumsum()])
    starts = starts.astype(smallest(int(starts[-1]) + 1))
    if gain(dense, columns, starts, len(users)) <= 0:
        return False
    values = schema.BufferT()
    values.data = np.frombuffer(dense[there].tobytes(), np.uint8)
    model.buffers.append(values)
    for graph, place in users:
        densify(model, graph, place, sparsity(graph.tensors[place].shape, starts, columns))
    stored.data = None
    return True


def len_of(tensor: Any) -> tuple[int, int]:
    """Rows and columns: all axes but the last together, which is how it lies there."""
    return int(np.prod(tensor.shape[:-1])), int(tensor.shape[-1])


def smallest(count: int) -> Any:
    """The type that holds ``count`` different numbers."""
    return np.uint8 if count <= 1 << 8 else np.uint16 if count <= 1 << 16 else np.int32


def gain(dense: Any, columns: Any, starts: Any, users: int) -> int:
    places = columns.nbytes + starts.nbytes + OVERHEAD
    return int(dense.nbytes - len(columns) * dense.itemsize - users * places)


def sparsity(shape: Any, starts: Any, columns: Any) -> Any:
    """Dense along all axes but the last, compressed along that one."""
    found = schema.SparsityParametersT()
    found.traversalOrder = list(range(len(shape)))
    found.dimMetadata = []
    for size in shape[:-1]:
        axis = schema.DimensionMetadataT()
        axis.format, axis.denseSize = schema.DimensionType.DENSE, int(size)
        found.dimMetadata.append(axis)
    last = schema.DimensionMetadataT()
    last.format = schema.DimensionType.SPARSE_CSR
    last.arraySegmentsType, last.arraySegments = vector(starts)
    last.arrayIndicesType, last.arrayIndices = vector(columns)
    found.dimMetadata.append(last)
    return found


def vector(numbers: Any) -> tuple[int, Any]:
    kinds = {
        np.dtype(np.uint8): (schema.SparseIndexVector.Uint8Vector, schema.Uint8VectorT),
        np.dtype(np.uint16): (schema.SparseIndexVector.Uint16Vector, schema.Uint16VectorT),
        np.dtype(np.int32): (schema.SparseIndexVector.Int32Vector, schema.Int32VectorT),
    }
    kind, make = kinds[numbers.dtype]
    made = make()
    made.values = numbers
    return kind, made


def densify(model: Any, graph: Any, place: int, how: Any) -> None:
    """Have a tensor made of a sparse one, before anything else in its subgraph."""
    dense = graph.tensors[place]
    sparse = copy.copy(dense)
    sparse.name, sparse.sparsity, sparse.buffer = dense.name + b"/packed", how, len(model.buffers) - 1
    graph.tensors.append(sparse)
    dense.buffer = 0
    operation = schema.OperatorT()
    operation.opcodeIndex = code(model, schema.BuiltinOperator.DENSIFY, version=1)
    operation.inputs, operation.outputs = [len(graph.tensors) - 1], [place]
    operation.builtinOptionsType = schema.BuiltinOptions.DensifyOptions
    operation.builtinOptions = schema.DensifyOptionsT()
    graph.operators.insert(0, operation)
