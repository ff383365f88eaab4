"""TensorRT, for NVIDIA GPUs. The folder holds one plain ``model.onnx`` that says every precision itself.

Where TensorRT and a GPU are, an engine is built, run and timed. Elsewhere the file is held against TensorRT's
rules and computed by ONNX Runtime, node by node as it is written: checked and scored, and never timed. Beside
it lie ``build_engine.sh`` and ``verify_on_gpu.py``.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import onnx

from karui.artifact import Port
from karui.errors import BuildFailed, MeasureFailed, foreign
from karui.graph.onnx import (
    OPSET,
    export_onnx,
    only_recurrent,
    quiet,
    refuse_learned,
    refuses_rules,
    refuses_table,
)
from karui.graph.onnx_bf16 import OPSET as BF16_OPSET
from karui.graph.onnx_bf16 import in_float, to_bf16
from karui.graph.onnx_half import halve
from karui.graph.ort_quantizers import METHODS, prepared, static_int8
from karui.graph.ort_session import literally, predictor, reference
from karui.graph.tensorrt import files, rules
from karui.graph.tensorrt.grids import PAIR, PRODUCTS
from karui.graph.tensorrt.seen import Seen, called
from karui.graph.tensorrt.sparsity import two_of_four
from karui.graph.tensorrt.verify_on_gpu import MODEL, Engine, build
from karui.numerics import Calibration
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.graph.half import Told
    from karui.graph.ranges.program import Quantized
    from karui.runtimes import Predict

CHECKED_ROWS = 8
RECURRENT = ("LSTM", "GRU", "RNN")


@final
@dataclass(frozen=True)
class TensorRt(Runtime):
    """``calibration`` and ``quantizer`` (karui's table, or ONNX Runtime's with symmetric ranges) are of INT8.
    largest: rows of the largest call that the engine takes.
    """

    opset: int = OPSET
    calibration: Calibration = "minmax"
    quantizer: Literal["karui", "onnxruntime"] = "karui"
    largest: int = 256

    def refuses(self, ask: Ask) -> str | None:
        precision = ask.numerics.default
        if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
            return f"the package {missing[0]!r} is not installed: pip install 'karui[tensorrt]'"
        if precision == "int8_dynamic":
            return "TensorRT's INT8 has constant scales and finds no ranges at run time: try int8"
        if precision == "bf16" and self.opset < BF16_OPSET:
            return f"ONNX has convolutions in bfloat16 from opset 22 on: bf16@tensorrt:opset={BF16_OPSET}"
        if ask.batch > self.largest:
            return f"the engine is built for up to {self.largest} rows a call: tensorrt:largest={ask.batch}"
        return (self.refuses_int8(ask) if precision == "int8" else None) or refuses_rules(ask.numerics)

    def refuses_int8(self, ask: Ask) -> str | None:
        if not ask.calibrated:
            return "static INT8 needs calibration data"
        if recurrent := only_recurrent(ask.layers):
            return f"static INT8 leaves {recurrent} in float, and there is no other layer to quantize"
        if self.quantizer == "karui":
            return refuses_table(ask, "onnxruntime")
        if self.calibration not in METHODS:
            return f"ONNX Runtime's own quantizer has no {self.calibration}; it has {', '.join(METHODS)}"
        return None

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def stands_in(self) -> str:
        if find_spec("tensorrt") is None:
            return "needs an NVIDIA GPU, and NVIDIA's package tensorrt"
        import torch

        return "" if torch.cuda.is_available() else "needs an NVIDIA GPU"

    def verified_as(self) -> str:
        """Another program computed the same file, so that only rules say that TensorRT takes it."""
        return "rule-checked" if self.stands_in() else "verified on runtime"

    def build(self, source: Source, folder: Path) -> Built:
        model, precision = folder / MODEL, source.numerics.default
        found, told = self.write(source, model)
        with foreign(BuildFailed, "the ONNX file cannot be read back"):
            written = onnx.load(str(model))
        rules.require(written)
        executed = facts(written, source, found)
        executed = told.added(executed) if told else executed
        theirs = named_as(written.graph, source.signature)
        files.write_files(folder, theirs, self.settings(source, executed))
        self.write_rows(source, theirs, folder)
        if not self.stands_in():
            (folder / files.PLAN).write_bytes(planned(folder))
        if precision != "int8":
            return Built(executed)
        return Built(executed, found.reference if found else reference(model, source))

    def write(self, source: Source, model: Path) -> tuple[Quantized | None, Told | None]:
        """The file in the precision that was asked for; gives what is known of INT8 from the table, and what
        stays in FP32 of a file in FP16.
        """
        precision = source.numerics.default
        if precision == "int8" and self.quantizer == "karui":
            return self.from_table(source, model), None
        if precision == "int8":
            refuse_learned(source.folder)
        with tempfile.TemporaryDirectory() as scratch:
            exported = model if precision == "fp32" else Path(scratch) / "exported.onnx"
            export_onnx(source.folder, source.signature, exported, self.opset)
            with foreign(BuildFailed, f"the ONNX file could not be converted to {precision}"), quiet():
                return None, self.convert(source, exported, model)

    def from_table(self, source: Source, model: Path) -> Quantized:
        from karui.graph.ranges import emit_onnx, profiles
        from karui.graph.ranges.table import save_table

        found = emit_onnx.from_table(source, profiles.tensorrt(), self.calibration, self.opset, model)
        save_table(found.table, model.parent)
        return found

    def convert(self, source: Source, exported: Path, model: Path) -> Told | None:
        precision = source.numerics.default
        if precision == "fp16":
            return halve(exported, model, source)
        if precision == "bf16":
            to_bf16(exported, model)
        elif precision == "int8":
            ready = prepared(exported, exported.parent)
            static_int8(source, ready, model, self.calibration, form="s8s8")
        return None

    def settings(self, source: Source, executed: dict[str, Any]) -> dict[str, Any]:
        """What an engine of the file is built with."""
        return {
            "precision": source.numerics.default,
            "batch": source.rows,
            "largest": self.largest,
            "sparse": bool(executed["sparse_layers"]),
        }

    def write_rows(self, source: Source, theirs: Signature, folder: Path) -> None:
        """Some rows with the original's answers and those of this file, for the check on a GPU.

        theirs: the signature in the names of the file.
        """
        signature = source.signature
        count = CHECKED_ROWS if signature.dynamic_batch else signature.batch
        rows = {name: array[:count].copy() for name, array in source.probe.items()}
        with tempfile.TemporaryDirectory() as scratch:
            export_onnx(source.folder, signature, Path(scratch) / MODEL, self.opset)
            original = as_written(Path(scratch), signature, source.threads)(rows)
        found = as_written(folder, signature, source.threads)(rows)
        given = {port.name: rows[mine.name] for port, mine in zip(theirs.inputs, signature.inputs)}
        files.write_rows(folder, theirs, given, found, original)

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        if not self.stands_in():
            return on_gpu(folder, signature)
        with foreign(BuildFailed, "the ONNX file cannot be read"):
            rules.require(onnx.load(str(folder / MODEL)))
        return as_written(folder, signature, threads)


def facts(written: Any, source: Source, found: Quantized | None) -> dict[str, Any]:
    """What the file holds. Raises BuildFailed where INT8 was asked for and no layer has it.

    sparse_layers: those whose weights have 2:4 zeros throughout, of ``sparse_layers_of`` that could.
    """
    precision, seen = source.numerics.default, Seen(written)
    layers = [node for node in seen.nodes if node.op_type in (*PRODUCTS, *RECURRENT)]
    int8 = [node for node in layers if in_int8(seen, node)]
    floats = [node for node in layers if not in_int8(seen, node)]
    if precision == "int8" and not int8:
        raise BuildFailed("no layer of the model would run in INT8", why="none has a weight to quantize")
    able, sparse = two_of_four(written)
    known = found.covered([called(node) for node in int8]) if found else {}
    if precision == "int8":
        known |= {"int8_layers": len(int8), "float_layers": len(floats)}
    return {
        "precision": precision,
        "detail": detail(precision, int8, floats, seen)
        + (f"; 2:4 zeros in {len(sparse)} layers" if sparse else ""),
        "sparse_layers": len(sparse),
        "sparse_layers_of": len(able),
        **known,
    }


def named_as(graph: Any, signature: Signature) -> Signature:
    """The signature in the names of the file, which are its maker's for a model given as ONNX."""

    def renamed(ports: Sequence[Port], values: Sequence[Any]) -> tuple[Port, ...]:
        return tuple(dataclasses.replace(p, name=value.name) for p, value in zip(ports, values, strict=True))

    inputs, outputs = renamed(signature.inputs, graph.input), renamed(signature.outputs, graph.output)
    return dataclasses.replace(signature, inputs=inputs, outputs=outputs)


def in_int8(seen: Seen, node: Any) -> bool:
    """Whether both of a product's inputs are dequantized, so that it runs on integers."""
    return node.op_type in PRODUCTS and all(
        seen.made_by(seen.source(name)) == PAIR[1] for name in node.input[:2]
    )


def detail(precision: str, int8: Sequence[Any], floats: Sequence[Any], seen: Seen) -> str:
    wide = [node for node in floats if precision == "fp16" and seen.types.get(node.output[0]) == "FLOAT"]
    rest = [node for node in floats if node not in wide]
    parts = (("int8", int8), ("fp32" if precision == "int8" else precision, rest), ("fp32", wide))
    told = [f"{listed(nodes)} in {word}" for word, nodes in parts if nodes]
    return "; ".join(told) or "no product or convolution"


def listed(nodes: Sequence[Any]) -> str:
    counts = Counter(node.op_type for node in nodes)
    return ", ".join(f"{kind} x{count}" for kind, count in counts.items())


def as_written(folder: Path, signature: Signature, threads: int) -> Predict:
    """The file computed by ONNX Runtime, node by node; bfloat16 in float32 with each result rounded."""
    model = folder / MODEL
    with foreign(BuildFailed, "ONNX Runtime does not run the file"):
        made = onnx.load(str(model))
        if any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in made.graph.initializer):
            return predictor(literally(in_float(made).SerializeToString(), threads), signature)
        return predictor(literally(model, threads), signature)


def planned(folder: Path) -> bytes:
    """An engine of the folder's file, for this GPU."""
    settings = json.loads((folder / files.SETTINGS).read_text(encoding="utf-8"))
    with foreign(BuildFailed, "TensorRT could not build an engine of the file"):
        return build(folder / MODEL, settings["batch"], settings["largest"], sparse=settings["sparse"])


def on_gpu(folder: Path, signature: Signature) -> Predict:
    """The engine; one that is missing, because the file was made elsewhere, is built now.

    A call takes arrays to the GPU and answers back, and waits. ``Engine.time`` times it by events there.
    """
    plan = folder / files.PLAN
    with foreign(MeasureFailed, "the engine cannot be opened"):
        engine = Engine(plan.read_bytes() if plan.is_file() else planned(folder))
    graph = onnx.load(str(folder / MODEL), load_external_data=False).graph
    theirs = named_as(graph, signature)
    pairs = [(port.name, mine.name) for port, mine in zip(theirs.inputs, signature.inputs)]

    def predict(arrays: Arrays) -> list[Array]:
        found = engine.run({name: arrays[mine] for name, mine in pairs})
        return [found[port.name] for port in theirs.outputs]

    return predict
