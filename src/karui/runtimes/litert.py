"""LiteRT (TensorFlow Lite) on the CPU, by its XNNPACK delegate, as in apps: one ``model.tflite``.

It is made by LiteRT's converter, which lives in an environment of its own; to open it takes the interpreter
alone. Shapes in it are fixed: it has one signature for each size of batch, and other sizes are made up of
these. Static INT8 is emitted from karui's table of ranges, which lies beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from karui.errors import BuildFailed, foreign
from karui.numerics import Calibration
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.graph.litert import Convertible
    from karui.graph.tflite import Kernel
    from karui.runtimes import Predict

FILE = "model.tflite"


@final
@dataclass(frozen=True)
class LiteRt(Runtime):
    """``calibration`` and ``quantizer`` (karui's table, or LiteRT's own) are of static INT8.

    pack_zeros: weights that are mostly zero are stored so (graph/tflite_zeros).
    """

    calibration: Calibration = "minmax"
    quantizer: Literal["karui", "litert"] = "karui"
    pack_zeros: bool = True

    def refuses(self, ask: Ask) -> str | None:
        from karui.graph.onnx import refuses_rules

        precision = ask.numerics.default
        if ask.form != "torch":
            return "the model was given as ONNX, and its converter reads torch programs"
        if precision == "bf16":
            return "its CPU kernels have no bfloat16"
        if precision == "int8" and not ask.calibrated:
            return "static INT8 needs calibration data"
        own = precision == "int8_dynamic" or self.quantizer == "litert"
        if ask.numerics.rules and precision.startswith("int8") and own:
            return "LiteRT's own tools round every layer: rules need int8 with quantizer=karui"
        return refuses_rules(ask.numerics) or refuses_layers(precision, ask.layers)

    def lacks(self) -> str:
        """The command that brings the converter; empty where it is there."""
        from karui.graph.litert_converter import lacking

        return lacking()

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def build(self, source: Source, folder: Path) -> Built:
        from karui.graph.litert import convertible, write
        from karui.graph.ranges.table import save_table
        from karui.graph.tflite import finish, kernels
        from karui.graph.tflite_zeros import pack

        made = convertible(source, self.quantizer, self.calibration)
        written = write(made, source, sizes(source), folder / FILE)
        with foreign(BuildFailed, "LiteRT cannot open the file that its converter made"):
            finish(folder / FILE, source.signature)
            saved = pack(folder / FILE) if self.pack_zeros else 0
            found = kernels(folder / FILE)
        executed = told(found, made, source) | {"converter": written.converter}
        if saved:
            executed["zeros_saved_bytes"] = saved
        if made.found:
            save_table(made.found.table, folder)
        return Built(executed, written.reference)

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        return predictor(Interpreter(str(folder / FILE), num_threads=threads), signature)


def refuses_layers(precision: str, layers: Mapping[str, int]) -> str | None:
    """Why static INT8 would change nothing."""
    from karui.graph.onnx import only_recurrent

    if precision == "int8" and (recurrent := only_recurrent(layers)):
        return f"it leaves {recurrent} in float, and there is no other layer to quantize"
    return None


def sizes(source: Source) -> list[int]:
    """The batches that the file has signatures for, the one that counts first."""
    return (
        list(dict.fromkeys((source.batch, 1))) if source.signature.dynamic_batch else [source.signature.batch]
    )


def told(found: Sequence[Kernel], made: Convertible, source: Source) -> dict[str, Any]:
    """The facts for ``Built.executed``. Raises BuildFailed when nothing would run as it was asked for."""
    precision = source.numerics.default
    products = [kernel for kernel in found if kernel.is_product]
    int8 = [kernel for kernel in products if kernel.integers and kernel.taken]
    if precision.startswith("int8") and not any(kernel.integers for kernel in products):
        raise BuildFailed("no layer of the model would run in INT8", why=f"it is {listed(found)}")
    left = Counter((kernel.name, kernel.integers) for kernel in found if not kernel.taken)
    stored = "weights stored in fp16, computed in fp32; " if precision == "fp16" else ""
    facts: dict[str, Any] = {
        "precision": "fp32" if stored else precision,
        "int8_kernels": len(int8),
        "float_kernels": sum(not kernel.integers for kernel in products),
        "batches": sizes(source),
        "delegated": dict(Counter(kernel.name for kernel in found if kernel.taken)),
        "fallback": [
            {"op": name, "count": count, "reason": reason(integers=integers)}
            for (name, integers), count in sorted(left.items())
        ],
        "detail": f"{stored}XNNPACK: {listed(k for k in found if k.taken)}; "
        f"LiteRT's own kernels: {listed(k for k in found if not k.taken)}",
    }
    return facts | (made.found.covered(layers_of(int8, made.scales)) if made.found else {})


def reason(*, integers: bool) -> str:
    return f"XNNPACK does not take it: LiteRT's own {'INT8' if integers else 'float'} kernel"


def layers_of(int8: Sequence[Kernel], scales: Mapping[str, Array]) -> list[str]:
    """The layers that these kernels compute, as the names of their nodes: each is known by its scales."""
    names, left = [], dict(scales)
    for kernel in int8:
        same = (layer for layer, known in left.items() if is_same(known, kernel.scales))
        if (layer := next(same, None)) is not None:
            names.append(f"{layer}/")
            del left[layer]
    return names


def is_same(one: Array, other: Array | None) -> bool:
    return other is not None and one.shape == other.shape and np.allclose(one, other, rtol=1e-6, atol=0)


def listed(kernels: Iterable[Kernel]) -> str:
    counts = Counter(kernel.name for kernel in kernels)
    return ", ".join(f"{name} x{count}" for name, count in sorted(counts.items())) or "nothing"


def predictor(interpreter: Interpreter, signature: Signature) -> Predict:
    """Rows for which there is no signature are filled up, and go in parts where they are too many."""
    called = {
        int(key.rpartition("_")[2]): interpreter.get_signature_runner(key) for key in listed_in(interpreter)
    }
    kinds = {name: details["dtype"] for name, details in called[max(called)].get_input_details().items()}
    outputs = [(port.name, port.dtype) for port in signature.outputs]

    def call(arrays: Arrays, size: int) -> list[Array]:
        found = called[size](**{name: arrays[name].astype(kind, copy=False) for name, kind in kinds.items()})
        return [found[name].astype(kind, copy=False) for name, kind in outputs]

    def predict(arrays: Arrays) -> list[Array]:
        rows = len(arrays[next(iter(kinds))])
        if rows in called:
            return call(arrays, rows)
        size = min((size for size in called if size > rows), default=max(called))
        index = np.arange(-(-rows // size) * size).clip(max=rows - 1)
        parts = [
            call({name: array[index[i : i + size]] for name, array in arrays.items()}, size)
            for i in range(0, rows, size)
        ]
        return [np.concatenate(pieces)[:rows] for pieces in zip(*parts, strict=True)]

    return predict


def listed_in(interpreter: Interpreter) -> list[str]:
    return list(interpreter.get_signature_list())
