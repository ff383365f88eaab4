"""A captured model as an ONNX file for ONNX Runtime, native or in a browser, and what its kernels will be.

Static INT8 is a QDQ file (u8 activations, s8 weights per channel: the fast pair on x86), emitted from
karui's table of ranges, which lies beside it; dynamic INT8 stores the weights of matrix products and LSTMs
as u8.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.errors import BuildFailed, foreign
from karui.graph.onnx import (
    every_node,
    export_onnx,
    is_product,
    only_recurrent,
    path_of,
    quiet,
    refuse_learned,
    refuses_rules,
    refuses_table,
)
from karui.graph.onnx_zeros import pack
from karui.graph.ort_quantizers import METHODS, dynamic_int8, module_paths, prepared, static_int8
from karui.numerics import WEIGHT_BITS, Calibration

if TYPE_CHECKING:
    from karui.data import Array
    from karui.graph.half import Told
    from karui.graph.ranges.program import Quantized
    from karui.graph.weights.options import Packing, Writing
    from karui.graph.weights.store import WeightOnly
    from karui.runtimes import Ask, Source

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
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


@dataclass(frozen=True)
class OrtBuild:
    """How the file is made.

    calibration, per_channel and quantizer ("karui": its table of ranges; "onnxruntime": its own) are of
    static INT8. saturates: where it will run, sums of u8 x s8 products overflow. packing and writing: of
    weights in 8 or 4 bits with float arithmetic; None where these are not made.
    """

    opset: int
    calibration: Calibration
    per_channel: bool
    quantizer: str
    pack_zeros: bool
    saturates: bool = False
    packing: Packing | None = None
    writing: Writing | None = None

    def refuses(self, ask: Ask) -> str | None:
        if missing := missing_packages():
            return f"the package {missing[0]!r} is not installed: pip install 'karui[onnxruntime]'"
        if ask.numerics.default == "bf16":
            return "ONNX Runtime's CPU kernels have no bfloat16"
        if ask.numerics.default == "int8" and (reason := self.refuses_int8(ask)):
            return reason
        if self.packing and ask.numerics.default in WEIGHT_BITS:
            return refuses_weights(ask, self.packing)
        return refuses_rules(ask.numerics) or refuses_layers(ask)

    def refuses_int8(self, ask: Ask) -> str | None:
        if not ask.calibrated:
            return "static INT8 needs calibration data"
        if self.quantizer == "karui":
            return refuses_table(ask, "onnxruntime")
        if self.calibration not in METHODS:
            return f"ONNX Runtime's own quantizer has no {self.calibration}; it has {', '.join(METHODS)}"
        return None

    def write(self, source: Source, model: Path) -> tuple[dict[str, Any], list[Array] | None]:
        """Write the file; what it will run, and for static INT8 the fake-quant reference."""
        precision = source.numerics.default
        if precision == "int8" and self.quantizer == "karui":
            return self.from_table(source, model)
        if precision in WEIGHT_BITS:
            return self.weights(source, model)
        with tempfile.TemporaryDirectory() as scratch:
            told = self.export(source, Path(scratch), model)
            executed = inspect(model, Path(scratch), source) | self.pack(model)
            if precision == "int8_dynamic":
                from karui.graph.recurrent import told as told_of

                executed |= told_of(
                    source, source.folder / f"exported-{self.opset}.onnx", executed["fallback"]
                )
            executed = told.added(executed) if told else executed
        return executed, fake_quant(model, source) if precision == "int8" else None

    def pack(self, model: Path) -> dict[str, int]:
        """Make the file as short as it can be said; what packed zeros saved of it."""
        from karui.graph.onnx_lean import lean

        lean(model)
        saved = pack(model) if self.pack_zeros else 0
        return {"zeros_saved_bytes": saved} if saved else {}

    def from_table(self, source: Source, model: Path) -> tuple[dict[str, Any], list[Array] | None]:
        """Static INT8 from the table of ranges."""
        from karui.graph.ranges import emit_onnx, profiles
        from karui.graph.ranges.table import save_table

        profile = profiles.onnxruntime(saturates=self.saturates, per_channel=self.per_channel)
        found = emit_onnx.from_table(source, profile, self.calibration, self.opset, model)
        save_table(found.table, model.parent)
        with tempfile.TemporaryDirectory() as scratch:
            executed = inspect(model, Path(scratch), source, found) | self.pack(model)
        return executed, found.reference

    def weights(self, source: Source, model: Path) -> tuple[dict[str, Any], list[Array] | None]:
        """Weights in 8 or 4 bits, arithmetic in float."""
        from karui.graph.onnx_lean import lean
        from karui.graph.weights.emit_onnx import write_weights

        assert self.packing and self.writing
        found = write_weights(source, self.packing, self.writing, self.opset, model)
        unpacked = self.writing.form == "dequantize"
        with tempfile.TemporaryDirectory() as scratch:
            graph = optimised(model, Path(scratch), everything=True, unpacked=unpacked)
        lean(model)
        return executed_weights(graph, source, found, unpacked=unpacked), found.reference

    def export(self, source: Source, scratch: Path, model: Path) -> Told | None:
        """Write the model in FP32, or convert it; tells what stays in FP32 of one in FP16."""
        precision = source.numerics.default
        exported = model if precision == "fp32" else scratch / "exported.onnx"
        if precision.startswith("int8"):
            refuse_learned(source.folder)
        export_onnx(source.folder, source.signature, exported, self.opset)
        with foreign(BuildFailed, f"ONNX Runtime could not convert the model to {precision}"), quiet():
            if precision == "fp16":
                from karui.graph.onnx_half import halve

                return halve(exported, model, source)
            if precision == "int8":
                static_int8(
                    source,
                    prepared(exported, scratch),
                    model,
                    self.calibration,
                    per_channel=self.per_channel,
                    form="u8s7" if self.saturates else "u8s8",
                )
            elif precision == "int8_dynamic":
                dynamic_int8(source, prepared(exported, scratch), model)
        return None


def missing_packages() -> list[str]:
    return [name for name in PACKAGES if find_spec(name) is None]


def refuses_weights(ask: Ask, packing: Packing) -> str | None:
    from karui.graph.weights.store import refuses

    return refuses(ask, packing)


def refuses_layers(ask: Ask) -> str | None:
    """Why INT8 would change nothing; an ONNX file's layers are only known at the build."""
    precision, layers = ask.numerics.default, ask.layers
    if precision == "int8" and (recurrent := only_recurrent(layers)):
        return f"static INT8 leaves {recurrent} in float, and there is no other layer to quantize"
    if precision != "int8_dynamic" or not layers or "LSTM" in layers or any(map(is_product, layers)):
        return None
    gru = ", and it has no dynamic GRU kernel" if "GRU" in layers else ""
    return f"no Linear or LSTM layer: ONNX Runtime quantizes nothing else dynamically{gru}"


def inspect(model: Path, scratch: Path, source: Source, found: Quantized | None = None) -> dict[str, Any]:
    """What ONNX Runtime makes of ``model``, read from its own optimised graph.

    The last optimisations only move layouts and fold casts; for INT8 they are left out, since they
    lose the nodes' names.
    """
    int8 = source.numerics.default.startswith("int8")
    return executed(optimised(model, scratch, everything=not int8), source, found)


def optimised(model: Path, scratch: Path, *, everything: bool, unpacked: bool = False) -> Any:
    """ONNX Runtime's own graph. everything: by all of its optimisations. unpacked: see ``options_for``."""
    import onnx
    import onnxruntime as ort

    from karui.graph.ort_session import options_for

    path, options, level = scratch / "optimised.onnx", options_for(1, unpacked), ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if everything else level.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
    with foreign(BuildFailed, "ONNX Runtime cannot open the model"):
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return onnx.load(str(path), load_external_data=False).graph


def executed(graph: Any, source: Source, found: Quantized | None = None) -> dict[str, Any]:
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
    refuse_broken(int8, source)
    paths = module_paths(graph, floats)
    fallback = [
        {"node": node.name, "op": node.op_type, "reason": why_float(node, paths[node.name], source)}
        for node in floats
    ]
    if not int8:
        reasons = "; ".join(f"{entry['op']}: {entry['reason']}" for entry in fallback[:3])
        raise BuildFailed("no layer of the model would run in INT8", why=reasons or "it has no such layer")
    detail = listed(int8) + (f"; in float: {listed(floats)}" if floats else "")
    if found:
        counts |= found.covered([node.name for node in int8])
    return counts | {"precision": asked, "detail": detail, "fallback": fallback}


def refuse_broken(int8: Sequence[Any], source: Source) -> None:
    """Raise BuildFailed where a layer would run in INT8 that a rule keeps in float."""
    rules = source.numerics.rules
    broken = sorted({path for node in int8 if source.numerics.of(path := path_of(node.name)) == "fp32"})
    if rules and broken:
        raise BuildFailed(
            f"ONNX Runtime would run {', '.join(broken[:3])} in INT8 all the same",
            why="it rounds float weights by itself between tensors that are quantized",
            fix="quantizer=karui keeps layers in float",
        )


def executed_weights(graph: Any, source: Source, found: WeightOnly, *, unpacked: bool) -> dict[str, Any]:
    """Counts of the kernels that read weights in few bits. Raises BuildFailed where layers read others."""
    nodes = list(every_node(graph))
    packed = [node for node in nodes if node.op_type == "MatMulNBits"]
    tables = [node for node in nodes if node.op_type == "Gather" and "/rows_" in node.name]
    floats = [node for node in nodes if node.op_type in FLOAT_KERNELS]
    missing = found.layers - {path_of(node.name) for node in packed}
    if missing and not unpacked:
        why = f"{', '.join(sorted(missing)[:3])} would run in {listed(floats)}"
        raise BuildFailed("ONNX Runtime would not multiply by the stored weights", why=why)
    kernels = [*told_products(packed), *([f"look-ups in 8 bits x{len(tables)}"] if tables else [])]
    kernels += ["products unpacked when opened"] if unpacked and found.layers else []
    left = [f"in float: {listed(floats)}"] if floats else []
    return {
        "precision": source.numerics.default,
        "weight_kernels": len(packed) + len(tables),
        "float_kernels": len(floats),
        "detail": "; ".join([", ".join(kernels), *left, found.told()]),
        "fallback": list(found.fallback),
    } | found.facts()


def told_products(packed: Sequence[Any]) -> list[str]:
    """MatMulNBits by the width of its weights and how it multiplies."""
    kinds: Counter[tuple[int, int]] = Counter()
    for node in packed:
        known = {one.name: one.i for one in node.attribute}
        kinds[known["bits"], known.get("accuracy_level", 0)] += 1
    how = {
        (8, 0): ", unpacked at each call: slow",
        (4, 4): ", activations in 8 bits",
        (8, 4): ", activations in 8 bits",
    }
    return [
        f"MatMulNBits x{many} ({bits} bits{how.get((bits, level), '')})"
        for (bits, level), many in sorted(kinds.items())
    ]


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


def listed(nodes: Sequence[Any]) -> str:
    counts = Counter(node.op_type for node in nodes)
    return ", ".join(f"{op} x{n}" for op, n in counts.items()) or "no product or convolution"


def fake_quant(model: Path, source: Source) -> list[Array]:
    from karui.graph.ort_session import reference

    return reference(model, source)
