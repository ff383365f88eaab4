"""Where the files of onnxruntime-web are: an npm package that is installed, never fetched from a CDN."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from karui.errors import MissingRuntime

WHERE = "KARUI_ORT_WEB"  # environment variable: the folder "dist" of the package
VERSION = "1.30.0"
DIST = Path("node_modules", "onnxruntime-web", "dist")
FILES = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}


def find_ort_web() -> Path | None:
    """The folder that holds the files, or None."""
    return next((folder for folder in places() if is_whole(folder)), None)


def ort_web() -> Path:
    """The same, or MissingRuntime with the remedy."""
    found = find_ort_web()
    if found is None:
        raise MissingRuntime("the npm package onnxruntime-web is not installed", fix=remedy())
    return found


def places() -> Iterator[Path]:
    """Where it is looked for: as told; upwards of the working directory; beside Python; in the cache."""
    if named := os.environ.get(WHERE):
        yield Path(named)
        return
    here = Path.cwd()
    yield from (folder / DIST for folder in (here, *here.parents))
    yield Path(sys.prefix) / DIST
    yield cache() / DIST


def is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for names in FILES.values() for name in names)


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "karui"


def remedy() -> str:
    prefix = sys.prefix if sys.prefix != sys.base_prefix else cache()
    return f"npm install --ignore-scripts --prefix {prefix} onnxruntime-web@{VERSION}"


def version_of(folder: Path | None) -> str:
    """As the package says of itself; "unknown" where it does not, or is not there."""
    path = folder.parent / "package.json" if folder else Path()
    return str(json.loads(path.read_text(encoding="utf-8"))["version"]) if path.is_file() else "unknown"
