"""Core ML, for Apple's systems. The folder holds one ``model.mlpackage``, made on any system.

It runs and is timed on macOS. Elsewhere the saved package is computed by a reference interpreter: its answers
are checked and scored like any other's, and it is never timed. ``verify_on_mac.py`` lies beside it, to be run
where Core ML is.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import torch

from karui.artifact import CHECK, CHECK_ROWS
from karui.errors import BuildFailed, Unsupported, foreign
from karui.graph.capture import LARGEST_BATCH
from karui.graph.mil import Package, is_stored
from karui.graph.onnx import quiet, refuse_learned
from karui.graph.program import bare, open_exported, predictor
from karui.runtimes import Ask, Built, Runtime, Source

if find_spec("coremltools") is None:  # importing it takes seconds, and only a build or a call needs it
    raise ModuleNotFoundError("No module named 'coremltools'", name="coremltools")

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.runtimes import Predict

PACKAGE = "model.mlpackage"
CHECKED_ROWS = 8
aten = torch.ops.aten
POOLS = (aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool1d.default, aten.avg_pool2d.default)
RECURRENT = ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")


@final
@dataclass(frozen=True)
class CoreMl(Runtime):
    """``palette``: bits of a palette that INT8 weights are chosen from; 0 for evenly spaced ones. ``units``:
    what Core ML may use on macOS.
    """

    palette: Literal[0, 4, 6, 8] = 0
    units: Literal["cpu", "all"] = "cpu"

    def refuses(self, ask: Ask) -> str | None:
        precision = ask.numerics.default
        if ask.form != "torch":
            return "the model was given as ONNX, and Core ML Tools reads torch programs"
        if precision == "bf16":
            return "Core ML has no bfloat16"
        if precision in ("int8", "int8_dynamic"):
            return "Core ML Tools finds ranges of activations on macOS only: try int8_weights"
        if precision == "int4_weights":
            return "weights in groups of 4 bits are not made for it: try int8_weights@coreml:palette=4"
        if ask.numerics.rules or ask.numerics.facts:
            return "it runs the whole model in one precision"
        return None

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def stands_in(self) -> str:
        return "" if sys.platform == "darwin" else "Core ML runs on macOS only"

    def build(self, source: Source, folder: Path) -> Built:
        with quiet(), foreign(BuildFailed, "Core ML Tools could not convert the model"):
            model = self.compressed(converted(source), source)
            model.save(str(folder / PACKAGE))
        with foreign(BuildFailed, "the saved package cannot be read back"):
            package = Package(folder / PACKAGE)
        write_check(source, package, folder)
        return Built(executed(source, package, folder))

    def compressed(self, model: Any, source: Source) -> Any:
        """With its weights in INT8, where that was asked for."""
        if source.numerics.default != "int8_weights":
            return model
        refuse_learned(source.folder)
        tools = coremltools().optimize.coreml
        if self.palette:
            palette = tools.OpPalettizerConfig(mode="kmeans", nbits=self.palette, weight_threshold=0)
            return tools.palettize_weights(model, tools.OptimizationConfig(global_config=palette))
        linear = tools.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=0)
        return tools.linear_quantize_weights(model, tools.OptimizationConfig(global_config=linear))

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        if self.stands_in():
            torch.set_num_threads(threads)
            return interpreted(Package(folder / PACKAGE), signature)
        ct = coremltools()
        units = ct.ComputeUnit.CPU_ONLY if self.units == "cpu" else ct.ComputeUnit.ALL
        return native(ct.models.MLModel(str(folder / PACKAGE), compute_units=units), signature)


def coremltools() -> Any:
    """The package, which tells a lot about itself when it is imported."""
    with quiet():
        return importlib.import_module("coremltools")


def converted(source: Source) -> Any:
    """The exported program; for recurrent layers the trace, which keeps them whole."""
    ct, program = coremltools(), open_exported(source.folder / "model.pt2")
    half = source.numerics.default != "fp32"
    given: Any = traced(source.folder) if is_recurrent(program) else spelled_out(program)
    return ct.convert(
        given,
        inputs=[tensor(port, source.signature) for port in source.signature.inputs],
        outputs=[ct.TensorType(name=name) for name in output_names(source.signature)],
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
    )


def is_recurrent(program: torch.export.ExportedProgram) -> bool:
    schemas = [getattr(node.target, "_schema", None) for node in program.graph.nodes]
    return any(schema.name in RECURRENT for schema in schemas if schema is not None)


def spelled_out(program: torch.export.ExportedProgram) -> Any:
    """In the operations that the converter reads; it takes no pool that leaves its strides out."""
    plain = program.run_decompositions({})
    for node in plain.graph.nodes:
        if node.target in POOLS and len(node.args) == 2:
            node.args = (*node.args, node.args[1])
    return plain


def traced(folder: Path) -> Any:
    if not (folder / "traced.pt").is_file():
        raise Unsupported("recurrent layers reach Core ML as a trace only", why="the model cannot be traced")
    return torch.jit.load(folder / "traced.pt")  # type: ignore[no-untyped-call]


def tensor(port: Any, signature: Signature) -> Any:
    ct, batch = coremltools(), signature.batch
    rows = ct.RangeDim(1, LARGEST_BATCH, default=batch) if signature.dynamic_batch else batch
    shape = ct.Shape([rows if size is None else size for size in port.shape])
    return ct.TensorType(name=port.name, shape=shape, dtype=kind_of(port.dtype))


def kind_of(dtype: str) -> Any:
    """Core ML takes 32-bit floats and integers."""
    return np.float32 if np.dtype(dtype).kind == "f" else np.int32


def output_names(signature: Signature) -> list[str]:
    taken = {port.name for port in signature.inputs}
    return [f"{port.name}_out" if port.name in taken else port.name for port in signature.outputs]


def executed(source: Source, package: Package, folder: Path) -> dict[str, Any]:
    """What the saved file holds: its operations, and the bytes of its weights."""
    counts = Counter(op.op_type for op in package.operations if not is_stored(op))
    stored = Counter(op.op_type for op in package.operations if is_stored(op))
    weights = sum(file.stat().st_size for file in (folder / PACKAGE).rglob("weight.bin"))
    precision = source.numerics.default
    if precision == "int8_weights" and not stored:
        raise BuildFailed("no weight of the model was stored in INT8", why="it has none that is large enough")
    told = ", ".join(f"{name} x{count}" for name, count in sorted(counts.items()) if name != "cast")
    kept = ", ".join(f"{name.removeprefix('constexpr_')} x{count}" for name, count in sorted(stored.items()))
    return {
        "precision": precision,
        "operations": dict(counts),
        "compressed": dict(stored),
        "weight_bytes": weights,
        "detail": f"{told}; weights: {weights} bytes" + (f" ({kept})" if kept else ""),
    }


def interpreted(package: Package, signature: Signature) -> Predict:
    names = [port.name for port in signature.inputs]
    kinds = [port.dtype for port in signature.outputs]

    @torch.inference_mode()
    def predict(arrays: Arrays) -> list[Array]:
        found = package({name: torch.from_numpy(arrays[name]) for name in names})
        return [output.numpy().astype(kind) for output, kind in zip(found, kinds, strict=True)]

    return predict


def native(model: Any, signature: Signature) -> Predict:
    """Core ML itself."""
    ports, kinds = signature.inputs, [port.dtype for port in signature.outputs]
    outputs = output_names(signature)

    def predict(arrays: Arrays) -> list[Array]:
        found = model.predict({port.name: arrays[port.name].astype(kind_of(port.dtype)) for port in ports})
        return [np.asarray(found[name]).astype(kind) for name, kind in zip(outputs, kinds, strict=True)]

    return predict


def write_check(source: Source, package: Package, folder: Path) -> None:
    """A script with rows, the original's answers and those of the reference, for a Mac without karui."""
    signature = source.signature
    rows = CHECKED_ROWS if signature.dynamic_batch else signature.batch
    inputs = {name: np.ascontiguousarray(array[:rows]) for name, array in source.probe.items()}
    original = predictor(bare(open_exported(source.folder / "model.pt2").module()), signature)(inputs)
    reference = interpreted(package, signature)(inputs)
    stored = {
        f"input/{port.name}": inputs[port.name].astype(kind_of(port.dtype)) for port in signature.inputs
    }
    for name, mine, theirs in zip(output_names(signature), reference, original, strict=True):
        stored |= {f"reference/{name}": mine, f"original/{name}": theirs}
    np.savez(folder / CHECK_ROWS, allow_pickle=False, **stored)
    (folder / CHECK).write_text(SCRIPT, encoding="utf-8")


SCRIPT = '''"""Run on a Mac: python verify_on_mac.py. Needs coremltools and numpy.

Compares Core ML's answers with those that were computed from this package elsewhere, and times it.
"""

import statistics
import sys
import time
from pathlib import Path

import coremltools as ct
import numpy as np

HERE = Path(__file__).parent
stored = np.load(HERE / "verify_on_mac.npz", allow_pickle=False)
inputs = {key[6:]: stored[key] for key in stored.files if key.startswith("input/")}
failed = False
for units in (ct.ComputeUnit.CPU_ONLY, ct.ComputeUnit.ALL):
    model = ct.models.MLModel(str(HERE / "model.mlpackage"), compute_units=units)
    answers = model.predict(inputs)
    for name, answer in answers.items():
        for against, limit in (("reference", 0.02), ("original", None)):
            wanted = stored[f"{against}/{name}"].astype(np.float64)
            gap = float(np.abs(answer - wanted).max() / max(float(np.abs(wanted).max()), 1e-12))
            wrong = limit is not None and not gap <= limit
            failed |= wrong
            print(f"{units.name} {name}: {gap:.2g} of the scale from the {against}" + " TOO FAR" * wrong)
    one = {name: rows[:1] for name, rows in inputs.items()}
    samples = []
    for _ in range(200 if all(len(rows) != 1 for rows in inputs.values()) else 0):
        start = time.perf_counter()
        model.predict(one)
        samples.append(time.perf_counter() - start)
    if samples:
        print(f"{units.name}: {1000 * statistics.median(samples[20:]):.3f} ms a call of one row")
sys.exit(failed)
'''
