"""ONNX files in FP16, with what would lose by it in FP32: graph/half for files.

Every tensor's largest value is found by running the FP32 file on calibration data. Nodes whose values come
near the end of FP16, or that sum or exponentiate, stay in FP32. The finished file is computed as it is
written on these data before it is given out: where it answers NaN or infinity and FP32 does not, there is
no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from karui.errors import BuildFailed
from karui.graph import half
from karui.graph.onnx import batches, every_node, path_of
from karui.graph.ort_session import literally
from karui.graph.tensorrt.seen import Seen

if TYPE_CHECKING:
    from karui.data import Array
    from karui.runtimes import Source

SENSITIVE = (
    "Softmax", "LogSoftmax", "Exp", "Pow", "Log", "Sqrt", "Reciprocal", "CumSum", "LayerNormalization",
    "GroupNormalization", "InstanceNormalization", "RMSNormalization", "MeanVarianceNormalization",
    "LpNormalization", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceSumSquare", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp",
)  # fmt: skip
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def halve(exported: Path, model: Path, source: Source) -> half.Told:
    """Write ``exported``, an FP32 file, in FP16, and tell what stays in FP32; the ends keep their types.

    Raises Unsupported for weights beyond FP16, BuildFailed where the file would overflow in spite of it all.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    plain = onnx.load(str(exported))
    ready(plain.graph)
    check_weights(plain.graph)
    largest = extremes(plain, source)
    kept = near(plain.graph, largest)
    original = {node.name for node in plain.graph.node}
    made = convert_float_to_float16(
        plain,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *SENSITIVE],
        node_block_list=list(kept),
    )
    made = joined(made, original)
    onnx.save(made, str(model))
    check_answers(exported, model, source)
    nodes = [node for node in every_node(made.graph) if node.name not in kept]
    sensitive = Counter(node.op_type for node in nodes if node.op_type in SENSITIVE)
    kinds = {node.name: node.op_type for node in every_node(made.graph)}
    fallback = [
        {"node": path_of(name) or name, "op": kinds[name], "reason": half.too_large(value)}
        for name, value in kept.items()
    ]
    return half.Told(fallback, dict(sensitive))


def ready(graph: Any) -> None:
    """As the converter wants it: it knows nodes by their names, and takes a stored tensor whose type is
    recorded for one that it has converted.
    """
    for i, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    stored = {tensor.name for tensor in graph.initializer}
    for value in [value for value in graph.value_info if value.name in stored]:
        graph.value_info.remove(value)


def check_weights(graph: Any) -> None:
    """Raises Unsupported for a matrix that FP16 does not hold; constants of lower rank may be masks."""
    for tensor in graph.initializer:
        if tensor.data_type == FLOAT and len(tensor.dims) > 1:
            largest = finite(numpy_helper.to_array(tensor))
            if largest > half.LARGEST:
                half.refuse_weight(tensor.name, largest)


def finite(array: Array) -> float:
    """The largest magnitude; infinities aside."""
    sizes = np.abs(array[np.isfinite(array)])
    return float(sizes.max()) if sizes.size else 0.0


def extremes(model: Any, source: Source) -> dict[str, float]:
    """The largest finite value of every float tensor of the main graph, by its name."""
    found = {
        tensor.name: finite(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.data_type == FLOAT
    }
    types = Seen(model).types
    names = [name for node in model.graph.node for name in node.output if types.get(name) == "FLOAT"]
    told = onnx.ModelProto()
    told.CopyFrom(model)
    answers = {output.name for output in told.graph.output}
    told.graph.output.extend(
        helper.make_tensor_value_info(name, FLOAT, None) for name in names if name not in answers
    )
    session = literally(told.SerializeToString(), source.threads)
    for given in inputs_of(session, source):
        for name, array in zip(names, session.run(names, given)):
            found[name] = max(found.get(name, 0.0), finite(array))
        for name, array in given.items():
            found[name] = max(found.get(name, 0.0), finite(array))
    return found


def inputs_of(session: Any, source: Source) -> Iterator[dict[str, Array]]:
    """Calibration data by the names of a file."""
    names = [node.name for node in session.get_inputs()]
    some = {name: rows[: half.MOST_ROWS] for name, rows in source.calibrate.items()}
    if not len(next(iter(some.values()), ())):
        return
    for part in batches(some, source.signature, half.ROWS):
        yield dict(zip(names, (part[port.name] for port in source.signature.inputs)))


def near(graph: Any, largest: Mapping[str, float]) -> dict[str, float]:
    """Nodes that read or give values near the end of FP16, and how large these are."""
    found = {}
    for node in graph.node:
        value = max((largest.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        if value >= half.NEAR:
            found[node.name] = value
    return found


def joined(model: Any, original: Collection[str]) -> Any:
    """``model``, in order, with no casts to FP16 and back between nodes in FP32: what is too large would be
    lost there. original: names of the nodes that the converter did not add.
    """
    graph = model.graph
    del graph.value_info[:]  # of the float model
    drop_twins(graph)
    renamed = round_trips(graph, original)
    for node in every_node(graph):
        for names in (node.input, node.output):
            names[:] = [last(name, renamed) for name in names]
    read = {name for node in every_node(graph) for name in node.input} | {
        value.name for value in graph.output
    }
    for node in list(graph.node):
        if casts_to(node, HALF) and not read.intersection(node.output):
            graph.node.remove(node)
    ordered = ir.from_proto(model)
    ordered.graph.sort()
    return ir.to_proto(ordered)


def drop_twins(graph: Any) -> None:
    """The converter casts a tensor once for each of its readers, always under the same name."""
    seen: set[str] = set()
    for node in list(graph.node):
        if seen.intersection(node.output):
            graph.node.remove(node)
        seen.update(name for name in node.output if name)


def round_trips(graph: Any, original: Collection[str]) -> dict[str, str]:
    """Remove the casts back; gives the names that are to be called otherwise for it."""
    makers = {name: node for node in graph.node for name in node.output}
    answers = {output.name for output in graph.output}
    renamed: dict[str, str] = {}
    for node in list(graph.node):
        down = makers.get(node.input[0]) if casts_to(node, FLOAT) else None
        if down is None or not casts_to(down, HALF) or down.name in original:
            continue
        wide, back = down.input[0], node.output[0]
        if back in answers and (wide not in makers or wide in renamed):
            continue  # it would give two answers, or an input straight
        renamed |= {wide: back} if back in answers else {back: wide}
        graph.node.remove(node)
    return renamed


def casts_to(node: Any, kind: int) -> bool:
    return node.op_type == "Cast" and any(one.name == "to" and one.i == kind for one in node.attribute)


def last(name: str, renamed: Mapping[str, str]) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def check_answers(exported: Path, model: Path, source: Source) -> None:
    """The file as it is written, on the calibration data: numbers wherever FP32 gives numbers."""
    plain, made = literally(exported, source.threads), literally(model, source.threads)
    for given in inputs_of(plain, source):
        for wanted, found in zip(plain.run(None, given), made.run(None, given), strict=True):
            if wanted.dtype.kind == "f" and np.isfinite(wanted).all() and not np.isfinite(found).all():
                raise BuildFailed(
                    "in FP16 the model answers NaN or infinity on the calibration data",
                    why="a sum inside of one of its operations passes 65504",
                    fix="bf16 or fp32",
                )
