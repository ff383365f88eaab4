"""An ONNX file open in a page of its own Chromium, run by ONNX Runtime Web."""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from karui.browser.chromium import Chromium
from karui.browser.ort_web import FILES, ort_web
from karui.browser.server import Server
from karui.errors import MeasureFailed
from karui.units import Seconds

PAGE = {name: Path(__file__).with_name(name) for name in ("page.html", "page.mjs")}
ANY_ADAPTER = ("--enable-unsafe-webgpu", "--enable-features=Vulkan")
SOFTWARE = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
ADAPTER = """navigator.gpu?.requestAdapter().then((found) =>
    found && !found.info.isFallbackAdapter ? `${found.info.vendor} ${found.info.architecture}` : "")"""


class Session:
    """``inputs`` and ``outputs`` are the names in the file. ``close`` ends the browser.

    Raises MissingRuntime where Chromium or the npm package is missing.
    """

    def __init__(self, model: Path, provider: str, threads: int) -> None:
        ort = ort_web()
        beside = {file.name: file for file in model.parent.glob("model.onnx*")}
        self.server = Server(PAGE | beside | {name: ort / name for name in FILES[provider]})
        self.browser = Chromium(flags_for(provider))
        self.close = weakref.finalize(self, end, self.browser, self.server)
        self.tab = self.browser.open(f"{self.server.url}page.html")
        wanted = {"bundle": f"./{FILES[provider][0]}", "provider": provider, "threads": threads}
        opened = self.tab.run(f"karui.open({json.dumps(wanted)})")
        if not opened["isolated"]:
            raise MeasureFailed("the page is not isolated", why="it would have no threads and a coarse clock")
        self.inputs, self.outputs = list(opened["inputs"]), list(opened["outputs"])

    def take(self, spec: Sequence[Mapping[str, Any]], raw: bytes) -> None:
        """Hold inputs for ``timed``: each ``{type, dims, offset, length}`` tells its place in ``raw``."""
        self.server.shelf.sent = raw
        self.tab.run(f"karui.take({json.dumps(spec)})")

    def answer(self, spec: Sequence[Mapping[str, Any]], raw: bytes) -> tuple[list[dict[str, Any]], bytes]:
        """What each output is, and all of their bytes one after the other."""
        self.server.shelf.sent = raw
        told = self.tab.run(f"karui.answer({json.dumps(spec)})")
        return told, self.server.shelf.got

    def timed(self, calls: int) -> list[Seconds]:
        """Seconds of a call on the inputs held, taken in the page."""
        found: list[Seconds] = self.tab.run(f"karui.timed({calls})")
        return found


def end(browser: Chromium, server: Server) -> None:
    browser.close()
    server.close()


def flags_for(provider: str) -> tuple[str, ...]:
    if provider == "wasm":
        return ("--disable-gpu",)
    return ANY_ADAPTER if gpu() else SOFTWARE


@functools.cache
def gpu() -> str:
    """Vendor and kind of the GPU that Chromium offers by WebGPU; empty where it has none."""
    server = Server(PAGE)
    browser = Chromium(ANY_ADAPTER)
    try:
        return str(browser.open(f"{server.url}page.html").run(ADAPTER) or "")
    finally:
        end(browser, server)
