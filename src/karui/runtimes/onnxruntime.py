"""ONNX Runtime on the CPU. The folder holds one plain ``model.onnx``.

Static INT8 is a QDQ file (u8 activations, s8 weights per channel: the fast pair on x86), calibrated
on the task's data; dynamic INT8 stores the weights of matrix products and LSTMs as u8.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import onnxruntime as ort

from karui import host
from karui.errors import BuildFailed, foreign
from karui.graph.onnx import (
    OPSET,
    answers,
    batches,
    export_onnx,
    is_product,
    kept_in_float,
    only_recurrent,
    path_of,
    quiet,
    refuses_rules,
)
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.runtimes import Predict

INT8_KERNELS = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "QLinearConvTranspose",
    "QAttention",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
)
RECURRENT = ("LSTM", "GRU", "RNN")
FLOAT_KERNELS = (
    "Conv",
    "FusedConv",
    "ConvTranspose",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "Attention",
    "MultiHeadAttention",
    *RECURRENT,
)
DYNAMIC = ("MatMul", "Gemm", "LSTM")  # never Conv: its dynamic kernels are slower than FP32
CALIBRATE_ROWS = 16  # samples held at once while ranges are found


@final
@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """``calibration`` and ``per_channel`` are of static INT8."""

    opset: int = OPSET
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    per_channel: bool = True

    def refuses(self, ask: Ask) -> str | None:
        if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
            return f"the package {missing[0]!r} is not installed: pip install 'karui[onnxruntime]'"
        if ask.numerics.default == "bf16":
            return "ONNX Runtime's CPU kernels have no bfloat16"
        if ask.numerics.default == "int8" and not ask.calibrated:
            return "static INT8 needs calibration data"
        return refuses_rules(ask.numerics) or refuses_layers(ask)

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def build(self, source: Source, folder: Path) -> Built:
        model = folder / "model.onnx"
        with tempfile.TemporaryDirectory() as scratch:
            if source.numerics.default == "fp32":
                export_onnx(source.folder, source.signature, model, self.opset)
            else:
                self.convert(source, Path(scratch), model)
            executed = inspect(model, Path(scratch), source)
        return Built(executed, reference(model, source) if source.numerics.default == "int8" else None)

    def convert(self, source: Source, scratch: Path, model: Path) -> None:
        """Write the model in a lower precision than FP32."""
        exported = scratch / "exported.onnx"
        export_onnx(source.folder, source.signature, exported, self.opset)
        precision = source.numerics.default
        with foreign(BuildFailed, f"ONNX Runtime could not convert the model to {precision}"), quiet():
            if precision == "fp16":
                halve(exported, model)
            elif precision == "int8":
                self.quantize(source, prepared(exported, scratch), model)
            else:
                store_int8(source, prepared(exported, scratch), model)

    def quantize(self, source: Source, prepared: Path, model: Path) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        methods = {
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }
        quantize_static(
            prepared,
            model,
            Reader(source),
            quant_format=QuantFormat.QDQ,
            per_channel=self.per_channel,
            reduce_range=host.saturates(host.flags()),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded(prepared, source),
            calibrate_method=methods[self.calibration],
            extra_options={"CalibStridedMinMax": 1},  # merge ranges after every batch, for bounded memory
        )

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        return predictor(session_of(folder / "model.onnx", threads), signature)


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


def refuses_layers(ask: Ask) -> str | None:
    """Why INT8 would change nothing; an ONNX file's layers are only known at the build."""
    precision, layers = ask.numerics.default, ask.layers
    if precision == "int8" and (recurrent := only_recurrent(layers)):
        return f"static INT8 leaves {recurrent} in float, and there is no other layer to quantize"
    if precision != "int8_dynamic" or not layers or "LSTM" in layers or any(map(is_product, layers)):
        return None
    gru = ", and it has no dynamic GRU kernel" if "GRU" in layers else ""
    return f"no Linear or LSTM layer: ONNX Runtime quantizes nothing else dynamically{gru}"


def halve(exported: Path, model: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(exported)), keep_io_types=True), str(model))


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


def store_int8(source: Source, prepared: Path, model: Path) -> None:
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
    """Names of the nodes that a rule keeps in FP32."""
    import onnx

    graph = onnx.load(str(prepared)).graph
    return kept_in_float(module_paths(graph, graph.node), source.numerics)


def module_paths(graph: Any, nodes: Sequence[Any]) -> dict[str, str]:
    """The module path of each node, told by its name or by its weight's."""
    stored = {tensor.name for tensor in graph.initializer}
    return {
        node.name: path_of(node.name, next((name for name in node.input if name in stored), ""))
        for node in nodes
    }


def inspect(model: Path, scratch: Path, source: Source) -> dict[str, Any]:
    """What ONNX Runtime makes of ``model``, read from its own optimised graph.

    The last optimisations only move layouts and fold casts; for INT8 they are left out, since they
    lose the nodes' names.
    """
    import onnx

    path, options, level = scratch / "optimised.onnx", options_for(1), ort.GraphOptimizationLevel
    int8 = source.numerics.default.startswith("int8")
    options.graph_optimization_level = level.ORT_ENABLE_EXTENDED if int8 else level.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
    with foreign(BuildFailed, "ONNX Runtime cannot open the model"):
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return executed(onnx.load(str(path), load_external_data=False).graph, source)


def executed(graph: Any, source: Source) -> dict[str, Any]:
    """Counts of the kernels that do the work. Raises BuildFailed when they are not what was asked for."""
    asked, nodes = source.numerics.default, list(every_node(graph))
    int8 = [node for node in nodes if node.op_type in INT8_KERNELS]
    floats = [node for node in nodes if node.op_type in FLOAT_KERNELS]
    counts: dict[str, Any] = {"int8_kernels": len(int8), "float_kernels": len(floats)}
    if not asked.startswith("int8"):
        if int8:
            raise BuildFailed(
                "the model is not a float model",
                why=f"it runs {listed(int8)}",
                fix="give the file from before it was quantized",
            )
        return counts | in_float(graph, floats, asked)
    paths = module_paths(graph, floats)
    fallback = [
        {"node": node.name, "op": node.op_type, "reason": why_float(node, paths[node.name], source)}
        for node in floats
    ]
    if not int8:
        reasons = "; ".join(f"{entry['op']}: {entry['reason']}" for entry in fallback[:3])
        raise BuildFailed("no layer of the model would run in INT8", why=reasons or "it has no such layer")
    detail = listed(int8) + (f"; in float: {listed(floats)}" if floats else "")
    return counts | {"precision": asked, "detail": detail, "fallback": fallback}


def in_float(graph: Any, floats: Sequence[Any], asked: str) -> dict[str, Any]:
    """FP16 is mostly a way to store: where no kernel has it, ONNX Runtime computes in FP32."""
    import onnx

    if asked == "fp32":
        return {"precision": "fp32", "detail": listed(floats)}
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    kernels = [node for node in floats if half.intersection(node.input)]
    casts = sum(node.op_type == "Cast" for node in every_node(graph))
    where = f"{listed(kernels)} in fp16" if kernels else f"computed in fp32: {listed(floats)}"
    return {
        "precision": "fp16" if kernels else "fp32",
        "casts": casts,
        "detail": f"weights stored in fp16, {where}, Cast x{casts}",
    }


def why_float(node: Any, path: str, source: Source) -> str:
    if source.numerics.rules and source.numerics.of(path) == "fp32":
        return "kept in FP32 by a rule"
    dynamic = source.numerics.default == "int8_dynamic"
    if node.op_type in RECURRENT:
        return f"ONNX Runtime has no {'dynamic' if dynamic else 'static'} INT8 kernel for it"
    if dynamic:
        return "only products with a stored matrix are quantized dynamically"
    return "ONNX Runtime did not join it with the quantization of its inputs and output"


def every_node(graph: Any) -> Iterator[Any]:
    """Nodes of a graph and of the branches and loops inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from every_node(inner)


def listed(nodes: Sequence[Any]) -> str:
    counts = Counter(node.op_type for node in nodes)
    return ", ".join(f"{op} x{n}" for op, n in counts.items()) or "no product or convolution"


def reference(model: Path, source: Source) -> list[Array]:
    """The fake-quant reference: without optimisation, Q/DQ nodes run literally around float kernels."""
    options = options_for(source.threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with foreign(BuildFailed, "ONNX Runtime does not run the quantized model"):
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return answers(predictor(session, source.signature), source.probe, source.signature)


def session_of(model: Path, threads: int) -> Any:
    return ort.InferenceSession(str(model), options_for(threads), providers=["CPUExecutionProvider"])


def options_for(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    if threads > 1:  # idle threads must not burn the cores of the next runtime in the round
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def predictor(session: Any, signature: Signature) -> Predict:
    """Inputs and outputs go by their order, so that the file's own names may differ."""
    mine = [port.name for port in signature.inputs]
    pairs = list(zip((node.name for node in session.get_inputs()), mine, strict=True))
    outputs = [node.name for node in session.get_outputs()]

    def predict(arrays: Arrays) -> list[Array]:
        found: list[Array] = session.run(outputs, {theirs: arrays[name] for theirs, name in pairs})
        return found

    return predict
