"""ONNX Runtime's own quantizers, on an ONNX file: static (QDQ) and dynamic INT8.

They are candidates and baselines beside karui's table, and what there is for models given as ONNX files and
for recurrent layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from karui.errors import BuildFailed, foreign
from karui.graph.onnx import batches, kept_in_float, path_of

if TYPE_CHECKING:
    from karui.data import Arrays
    from karui.runtimes import Source

DYNAMIC = ("MatMul", "Gemm", "LSTM")  # never Conv: its dynamic kernels are slower than FP32
CALIBRATE_ROWS = 16  # samples held at once while ranges are found
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


Form = Literal["u8s8", "u8s7", "s8s8"]  # of activations and weights; the last with biases in float
SYMMETRIC = {  # as TensorRT wants it; weights stay in float before a QuantizeLinear of their own
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
    "DedicatedQDQPair": True,
}


def static_int8(
    source: Source,
    prepared: Path,
    model: Path,
    calibration: str,
    *,
    form: Form,
    per_channel: bool = True,
) -> None:
    """By ``quantize_static``, from the batches of ``source``."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        prepared,
        model,
        Reader(source),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        reduce_range=form == "u8s7",
        activation_type=QuantType.QInt8 if form == "s8s8" else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=excluded(prepared, source),
        calibrate_method=CalibrationMethod[METHODS[calibration]],
        extra_options={
            "CalibStridedMinMax": 1,  # merge ranges after every batch, for bounded memory
            **(SYMMETRIC if form == "s8s8" else {}),
        },
    )


class Reader:
    """Calibration data as ONNX Runtime wants it read: so many batches, given out in order."""

    def __init__(self, source: Source) -> None:
        rows = len(next(iter(source.calibrate.values())))
        size = CALIBRATE_ROWS if source.signature.dynamic_batch else source.signature.batch
        self.count, self.left = -(-rows // size), 0
        self.stream = batches(source.calibrate, source.signature, CALIBRATE_ROWS)

    def __len__(self) -> int:
        return self.count

    def set_range(self, start_index: int, end_index: int) -> None:
        self.left = end_index - start_index

    def get_next(self) -> Arrays | None:
        self.left -= 1
        return next(self.stream, None) if self.left >= 0 else None


def prepared(exported: Path, scratch: Path) -> Path:
    """The model with known shapes and every node named, as the quantizers need it."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = scratch / "prepared.onnx"
    try:
        with foreign(BuildFailed, "symbolic shape inference failed"):
            quant_pre_process(exported, path)
    except BuildFailed:
        quant_pre_process(exported, path, skip_symbolic_shape=True)
    model = onnx.load(str(path))
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    untie(model.graph)
    onnx.save(model, str(path))
    return path


def untie(graph: Any) -> None:
    """Give each Gemm a weight of its own.

    The dynamic quantizer transposes it in place, once a reader; the static one quantizes it along
    the axis of its last reader.
    """
    readers = Counter(name for node in graph.node for name in set(node.input))
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        name = node.input[1] if node.op_type == "Gemm" else ""
        if name in stored and readers[name] > 1:
            readers[name] -= 1
            twin = graph.initializer.add()
            twin.CopyFrom(stored[name])
            twin.name = node.input[1] = f"{node.name}.{name}"


def dynamic_int8(source: Source, prepared: Path, model: Path) -> None:
    """Dynamic INT8: weights stored as u8, ranges of activations found at each call."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kept = excluded(prepared, source)
    kept += [f"{name}_MatMul" for name in kept]  # what the quantizer calls a Gemm it has taken apart
    quantize_dynamic(
        prepared,
        model,
        weight_type=QuantType.QUInt8,
        op_types_to_quantize=list(DYNAMIC),
        nodes_to_exclude=kept,
    )


def excluded(prepared: Path, source: Source) -> list[str]:
    """Names of the nodes that a rule keeps in FP32; in dynamic INT8 one may name a weight of an LSTM."""
    import onnx

    graph = onnx.load(str(prepared)).graph
    paths, owned = module_paths(graph, graph.node), dict[str, str]()
    if source.numerics.default == "int8_dynamic" and any(node.op_type == "LSTM" for node in graph.node):
        from karui.graph.recurrent import owners

        owned = owners(source, prepared)
    kept = kept_in_float(paths | {path: path for path in owned}, source.numerics)
    return list(dict.fromkeys(owned.get(name, name) for name in kept))


def module_paths(graph: Any, nodes: Sequence[Any]) -> dict[str, str]:
    """The module path of each node, told by its name or by its weight's."""
    stored = {tensor.name for tensor in graph.initializer}
    return {
        node.name: path_of(node.name, next((name for name in node.input if name in stored), ""))
        for node in nodes
    }
