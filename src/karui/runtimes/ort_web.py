"""ONNX Runtime Web, in a real Chromium. The folder holds one plain ``model.onnx`` (graph/ort_build).

The file is opened in a page of a browser without a window, and timed by that page's own clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np

from karui.browser.chromium import REMEDY, find_chromium
from karui.browser.ort_web import find_ort_web, remedy, version_of
from karui.browser.session import Session, gpu
from karui.graph.onnx import OPSET
from karui.graph.ort_build import OrtBuild, missing_packages
from karui.numerics import Calibration
from karui.runtimes import Ask, Built, Elsewhere, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays
    from karui.runtimes import Predict
    from karui.units import Seconds

ALIGNED = 8  # bytes: where an array of any type may begin


@final
@dataclass(frozen=True)
class OrtWeb(Runtime):
    """``provider``: WebAssembly on the CPU, or WebGPU. The others are those of ``onnxruntime``."""

    provider: Literal["wasm", "webgpu"] = "wasm"
    opset: int = OPSET
    calibration: Calibration = "minmax"
    per_channel: bool = True
    quantizer: Literal["karui", "onnxruntime"] = "karui"
    pack_zeros: bool = True

    def refuses(self, ask: Ask) -> str | None:
        if self.provider == "webgpu" and ask.numerics.default.startswith("int8"):
            return "WebGPU has no INT8 kernels: layers would run in float, or beside it on the CPU"
        return self.how().refuses(ask)

    def lacks(self) -> str:
        packages = "pip install 'karui[ort_web]'" if missing_packages() else ""
        npm = "" if find_ort_web() else remedy()
        browser = "" if find_chromium() else REMEDY
        return " and ".join(part for part in (packages, npm, browser) if part)

    def how(self) -> OrtBuild:
        """Its kernels widen products before they are summed: nothing saturates on any CPU."""
        return OrtBuild(self.opset, self.calibration, self.per_channel, self.quantizer, self.pack_zeros)

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def stands_in(self) -> str:
        if self.provider == "wasm" or gpu():
            return ""
        return "Chromium has no GPU here, and a software adapter stands in"

    def build(self, source: Source, folder: Path) -> Built:
        executed, reference = self.how().write(source, folder / "model.onnx")
        told = {"provider": self.provider, "onnxruntime_web": version_of(find_ort_web())}
        return Built(executed | told, reference)

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        return Page(Session(folder / "model.onnx", self.provider, threads), signature)


class Page(Elsewhere):
    """The model in its page. Inputs and outputs go by their order: the file's own names may differ."""

    def __init__(self, session: Session, signature: Signature) -> None:
        self.session, self.signature = session, signature
        self.held: Arrays | None = None

    def __call__(self, arrays: Arrays) -> list[Array]:
        self.held = None
        told, raw = self.session.answer(*packed([arrays[port.name] for port in self.signature.inputs]))
        found, start = [], 0
        for one in told:
            kind, count = np.dtype(one["type"]), int(np.prod(one["dims"]))
            found.append(np.frombuffer(raw, kind, count, start).reshape(one["dims"]).copy())
            start += kind.itemsize * count
        return found

    def timed(self, arrays: Arrays, calls: int) -> list[Seconds]:
        if self.held is not arrays:
            self.session.take(*packed([arrays[port.name] for port in self.signature.inputs]))
            self.held = arrays
        return self.session.timed(calls)


def packed(arrays: list[Array]) -> tuple[list[dict[str, Any]], bytes]:
    """The arrays one after the other, each at an aligned place, and what stands where."""
    spec, parts, start = [], [], 0
    for array in arrays:
        raw = np.ascontiguousarray(array).tobytes()
        whole = raw.ljust(-(-len(raw) // ALIGNED) * ALIGNED, b"\0")
        spec.append(
            {"type": str(array.dtype), "dims": list(array.shape), "offset": start, "length": array.size}
        )
        parts.append(whole)
        start += len(whole)
    return spec, b"".join(parts)
