"""OpenVINO on the CPU. The folder holds ``model.xml`` (or ``.xml.gz``), ``model.bin`` and ``openvino.json``.

OpenVINO chooses its own arithmetic unless told (on a CPU with bfloat16 it leaves FP32 by itself), so
``openvino.json`` keeps the precision that ``load`` pins. Static INT8 is emitted from karui's table of
ranges, which lies beside it, or made by NNCF.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from karui import host
from karui.errors import BuildFailed, Unsupported, foreign
from karui.graph.onnx import (
    OPSET,
    answers,
    batches,
    export_onnx,
    kept_in_float,
    only_recurrent,
    quiet,
    refuse_learned,
    refuses_rules,
    refuses_table,
)
from karui.graph.ov_kernels import (
    INT8,
    RECURRENT,
    Kernel,
    executed_weights,
    has_attention,
    kernels_of,
    listed,
    module_paths,
    products_of,
)
from karui.graph.ov_lean import XML, pack, read, save, simplified
from karui.graph.ov_sparse import RATE, Packed, fastest
from karui.graph.weights.options import Packing
from karui.numerics import WEIGHT_BITS, Calibration
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.runtimes import Predict


@contextlib.contextmanager
def no_telemetry() -> Iterator[None]:
    """Make OpenVINO's reporter look missing while something is imported.

    Merely importing OpenVINO sends an event to Google Analytics and writes into the home folder;
    NNCF decides at its import whether it reports. Both keep quiet where the reporter is missing.
    """
    before = {name: module for name, module in sys.modules.items() if name == "openvino_telemetry"}
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]
        sys.modules.update(before)


with no_telemetry():
    import openvino as ov

BFLOAT16 = {"avx512_bf16", "amx_bf16"}
PINNED = "openvino.json"
CALIBRATE_ROWS = 16  # samples held at once while ranges are found
LITERAL = {"LP_TRANSFORMS_MODE": False, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}  # no INT8 kernels


@final
@dataclass(frozen=True)
class OpenVino(Runtime):
    """``calibration`` and ``quantizer`` (karui's table, or NNCF) are of static INT8.

    Of weights in 8 or 4 bits (calibration is ``minmax`` or ``mse`` there): ``group``, ``symmetric`` and
    ``rounding`` (graph/weights/options); accuracy_level 4 rounds activations to 8 bits at each call.
    compress_xml: the model's description as ``model.xml.gz``; it is most of the bytes of a small INT8 model.
    sparse: INT8 matrices packed by their zeros in memory, where that is measured to be faster (Intel AMX).

    "mean", over samples of each one's extremes, is NNCF's own choice; it clips, and lost 5 to 20 dB against
    the extremes on four of five networks of the benchmark.
    """

    calibration: Literal[Calibration, "mean"] = "minmax"
    quantizer: Literal["karui", "nncf"] = "karui"
    group: Literal[16, 32, 64, 128] = 64
    symmetric: bool = False
    rounding: Literal["gptq", "nearest"] | None = None
    accuracy_level: Literal[0, 4] = 0
    compress_xml: bool = False
    sparse: bool = False

    def refuses(self, ask: Ask) -> str | None:
        precision = ask.numerics.default
        nncf = precision == "int8" and self.quantizer == "nncf"
        needed = ["onnx", "onnxscript"] * (ask.form == "torch") + ["nncf"] * nncf
        if missing := [name for name in needed if find_spec(name) is None]:
            return f"the package {missing[0]!r} is not installed: pip install 'karui[openvino]'"
        if precision == "bf16" and not BFLOAT16 & set(ask.flags):
            return "this CPU has no bfloat16 instructions"
        if self.sparse and (precision != "int8" or "amx_int8" not in ask.flags):
            return "OpenVINO packs weights by their zeros in INT8 only, on CPUs with Intel AMX"
        if precision == "int8_dynamic":
            return "OpenVINO's CPU quantizes activations dynamically only for language models of INT8 weights"
        if precision in WEIGHT_BITS:
            return self.refuses_weights(ask)
        return (self.refuses_int8(ask) if precision == "int8" else None) or refuses_rules(ask.numerics)

    def refuses_weights(self, ask: Ask) -> str | None:
        from karui.graph.weights.store import refuses

        if self.quantizer == "nncf":
            return "weights in 8 or 4 bits are rounded by karui: quantizer=karui"
        return refuses(ask, self.packing)

    @property
    def packing(self) -> Packing:
        return Packing(self.group, self.symmetric, self.calibration, self.rounding)

    def refuses_int8(self, ask: Ask) -> str | None:
        if not ask.calibrated:
            return "static INT8 needs calibration data"
        if recurrent := only_recurrent(ask.layers):
            return f"INT8 leaves {recurrent} in float, and there is no other layer to quantize"
        mine = {"karui": self.calibration != "mean", "nncf": self.calibration in ("minmax", "mean")}
        if not mine[self.quantizer]:
            return f"the quantizer {self.quantizer} has no calibration {self.calibration!r}"
        return refuses_table(ask, "nncf") if self.quantizer == "karui" else None

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def build(self, source: Source, folder: Path) -> Built:
        precision = source.numerics.default
        pinned: dict[str, Any] = {"precision_hint": "bf16" if precision == "bf16" else "f32"}
        if precision in WEIGHT_BITS:  # else OpenVINO rounds activations by itself
            pinned["activation_group"] = self.group if self.accuracy_level else 0
        (folder / PINNED).write_text(json.dumps(pinned), encoding="utf-8")
        built = self.written(source, folder)
        if self.sparse:
            packed = self.packed(source, folder)
            pinned["sparse_rate"] = packed.rate
            (folder / PINNED).write_text(json.dumps(pinned), encoding="utf-8")
            detail = f"{built.executed['detail']}; {packed}"
            built = Built({**built.executed, **packed.facts(), "detail": detail}, built.reference)
        if self.compress_xml:
            pack(folder)
        return built

    def packed(self, source: Source, folder: Path) -> Packed:
        from karui.graph.capture import repeat

        x = repeat(source.calibrate, source.rows)
        return fastest(
            lambda rate: compiled_from(folder, source.threads, {RATE: rate}),
            lambda compiled: functools.partial(predictor(compiled, source.signature), x),
            source.rows,
        )

    def written(self, source: Source, folder: Path) -> Built:
        precision = source.numerics.default
        if precision in WEIGHT_BITS:
            return self.weights(source, folder)
        if precision == "int8" and self.quantizer == "karui":
            return self.from_table(source, folder)
        kept, products = self.convert(source, folder / XML)
        ran = executed(kernels_in(folder, products), precision, kept)
        return Built(ran, reference(folder, source, products) if precision == "int8" else None)

    def from_table(self, source: Source, folder: Path) -> Built:
        """Static INT8 from the table of ranges."""
        from karui.graph.ranges import emit_onnx, profiles
        from karui.graph.ranges.table import save_table

        profile = profiles.openvino(saturates=host.saturates(source.flags))
        with tempfile.TemporaryDirectory() as scratch:
            exported = Path(scratch) / "model.onnx"
            found = emit_onnx.from_table(source, profile, self.calibration, OPSET, exported)
            with foreign(BuildFailed, "OpenVINO could not read the quantized model"), quiet():
                model = ov.Core().read_model(exported)
                paths = module_paths(model)  # before constants, by which layers are told, are worked out
                save(simplified(model), folder / XML)
        save_table(found.table, folder)
        kernels = kernels_in(folder, products_of(model))
        kept = {name for name, path in paths.items() if source.numerics.of(path) == "fp32"}
        int8 = [name for kernel in kernels if kernel.precision in INT8 for name in kernel.names]
        return Built(executed(kernels, "int8", kept) | found.covered(int8), found.reference)

    def weights(self, source: Source, folder: Path) -> Built:
        """Weights in 8 or 4 bits, arithmetic in float."""
        from karui.graph.weights.emit_onnx import answering, write_weights
        from karui.graph.weights.options import Writing

        with tempfile.TemporaryDirectory() as scratch:
            exported = Path(scratch) / "model.onnx"
            found = write_weights(source, self.packing, Writing(), OPSET, exported)
            named = answering(exported)
            with foreign(BuildFailed, "OpenVINO could not read the model with stored weights"), quiet():
                save(simplified(ov.Core().read_model(exported)), folder / XML)
        with foreign(BuildFailed, "OpenVINO cannot open the model"):
            ops = compiled_from(folder, 1).get_runtime_model().get_ordered_ops()
        if self.accuracy_level:
            refuse_unrounded(folder, source)
        return Built(executed_weights(ops, source, found, self.accuracy_level, named), found.reference)

    def convert(self, source: Source, path: Path) -> tuple[set[str], set[str]]:
        """Write the model; tells the operations that rules keep in FP32, and the matrix products."""
        precision = source.numerics.default
        if precision == "int8":
            refuse_learned(source.folder)
        with tempfile.TemporaryDirectory() as scratch:
            exported = Path(scratch) / "model.onnx"
            export_onnx(source.folder, source.signature, exported)
            with foreign(BuildFailed, f"OpenVINO could not convert the model to {precision}"), quiet():
                model = ov.Core().read_model(exported)
                kept = kept_in_float(module_paths(model), source.numerics)
                if precision == "fp16":
                    check_weights(model)
                nncf = precision == "int8"
                model = by_nncf(model, source, kept, self.calibration) if nncf else simplified(model)
                save(model, path, fp16=precision == "fp16")
                return set(kept), products_of(model)

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        return predictor(compiled_from(folder, threads), signature)


def refuse_unrounded(folder: Path, source: Source) -> None:
    """Raise Unsupported where OpenVINO rounds no activation, though it was asked to: it does not tell."""
    rows = next(batches(source.probe, source.signature, CALIBRATE_ROWS))
    plain = compiled_from(folder, 1, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})
    answered = [predictor(one, source.signature)(rows) for one in (plain, compiled_from(folder, 1))]
    if all((mine == theirs).all() for mine, theirs in zip(*answered, strict=True)):
        raise Unsupported(
            "OpenVINO would round no activations to 8 bits",
            why="its kernels for that want larger layers, or another CPU",
            fix="accuracy_level=0",
        )


def check_weights(model: Any) -> None:
    """Raises Unsupported for a matrix that FP16 does not hold."""
    from karui.graph import half

    for op in model.get_ops():
        if op.get_type_name() != "Constant" or len(op.shape) < 2 or op.get_element_type() != ov.Type.f32:
            continue
        if (largest := float(abs(op.data).max(initial=0.0))) > half.LARGEST:
            half.refuse_weight(op.get_friendly_name(), largest)


def by_nncf(model: Any, source: Source, kept: list[str], calibration: str) -> Any:
    nncf = silent_nncf()
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    rows = CALIBRATE_ROWS if calibration == "minmax" else 1
    items = list(batches(source.calibrate, source.signature, rows))
    advanced = nncf.AdvancedQuantizationParameters()
    if host.saturates(source.flags):
        advanced.overflow_fix = OverflowFix.ENABLE
    if calibration == "minmax":
        advanced.activations_range_estimator_params = RangeEstimatorParametersSet.MINMAX
    transformer = has_attention(model)
    if transformer:  # SmoothQuant on products gives garbage beyond 64 samples on some CPUs
        advanced.smooth_quant_alphas = nncf.AdvancedSmoothQuantParameters(matmul=-1)
    return nncf.quantize(
        model,
        nncf.Dataset(items),
        subset_size=len(items),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        ignored_scope=nncf.IgnoredScope(names=kept),
        advanced_parameters=advanced,
    )


def silent_nncf() -> Any:
    with no_telemetry():
        import nncf
        from nncf.telemetry import wrapper
    if isinstance(wrapper.telemetry, wrapper.NNCFTelemetry):
        raise BuildFailed(
            "NNCF would send telemetry",
            why="it was imported before karui, with its telemetry on",
            fix="set the environment variable NNCF_CI=1",
        )
    return nncf


def kernels_in(folder: Path, products: set[str]) -> list[Kernel]:
    with foreign(BuildFailed, "OpenVINO cannot open the model"):
        return kernels_of(compiled_from(folder, 1), products)


def executed(kernels: Sequence[Kernel], asked: str, kept: set[str]) -> dict[str, Any]:
    """Counts of the kernels that do the work; ``kept`` are the operations that rules keep in FP32.

    Raises BuildFailed when the kernels are not what was asked for.
    """
    int8 = [kernel for kernel in kernels if kernel.precision in INT8]
    floats = [kernel for kernel in kernels if kernel.precision not in INT8]
    counts: dict[str, Any] = {"int8_kernels": len(int8), "float_kernels": len(floats)}
    if asked != "int8":
        return counts | in_float(kernels, asked)
    fallback = [
        {"node": kernel.names[0], "op": kernel.kind, "reason": why_float(kernel, kept)} for kernel in floats
    ]
    if not int8:
        reasons = "; ".join(f"{entry['op']}: {entry['reason']}" for entry in fallback[:3])
        raise BuildFailed("no layer of the model would run in INT8", why=reasons or "it has no such layer")
    return counts | {"precision": "int8", "detail": listed(kernels), "fallback": fallback}


def in_float(kernels: Sequence[Kernel], asked: str) -> dict[str, Any]:
    """FP16 is a way to store here: the arithmetic is FP32."""
    found = {kernel.precision for kernel in kernels}
    honoured = "bf16" in found if asked == "bf16" else asked != "int8_dynamic" and found <= {"f32"}
    if not honoured:
        meant = "fp32" if asked == "fp16" else asked
        raise BuildFailed(f"the model would not run in {meant}", why=f"it runs {listed(kernels)}")
    if asked == "fp16":
        return {"precision": "fp32", "detail": f"weights stored in fp16, computed in fp32: {listed(kernels)}"}
    return {"precision": asked, "detail": listed(kernels)}


def why_float(kernel: Kernel, kept: set[str]) -> str:
    if kept.intersection(kernel.names):
        return "kept in FP32 by a rule"
    if kernel.kind in RECURRENT:
        return "OpenVINO has no INT8 kernel for it"
    return "OpenVINO found no INT8 form of it"


def reference(folder: Path, source: Source, products: set[str]) -> list[Array] | None:
    """The fake-quant reference: quantize and dequantize literally, around float kernels.

    None when this version of OpenVINO does not let its INT8 transformations be turned off.
    """
    try:
        with foreign(Unsupported, "OpenVINO's INT8 transformations cannot be turned off"):
            compiled = compiled_from(folder, source.threads, LITERAL)
            if any(kernel.precision in INT8 for kernel in kernels_of(compiled, products)):
                return None
            return answers(predictor(compiled, source.signature), source.probe, source.signature)
    except Unsupported:
        return None


def compiled_from(folder: Path, threads: int, extra: Mapping[str, Any] | None = None) -> Any:
    pinned = json.loads((folder / PINNED).read_text(encoding="utf-8"))
    properties = {
        "INFERENCE_PRECISION_HINT": pinned["precision_hint"],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # as in every other runtime: the system may move it off a busy core
    }
    if "activation_group" in pinned:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = pinned["activation_group"]
    if "sparse_rate" in pinned:  # a CPU without AMX takes no notice
        properties[RATE] = pinned["sparse_rate"]
    return ov.Core().compile_model(read(folder), "CPU", properties | dict(extra or {}))


def predictor(compiled: Any, signature: Signature) -> Predict:
    """Inputs are shared, outputs copied: the next call writes into the same memory."""
    request = compiled.create_infer_request()
    inputs = [(port.name, compiled.input(port.name)) for port in signature.inputs]
    outputs = list(compiled.outputs)

    def predict(arrays: Arrays) -> list[Array]:
        for name, port in inputs:
            array = arrays[name]
            shared = array.flags.writeable and array.flags.c_contiguous
            request.set_tensor(port, ov.Tensor(array, shared_memory=shared))
        request.infer()
        return [request.get_tensor(port).data.copy() for port in outputs]

    return predict
