"""The building process: turns a captured model into an artifact, away from the parent.

Converters crash, hang and eat memory; here that costs one trial. The process lives for a whole run,
so that heavy imports are paid once, and is replaced when it dies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from karui import runtimes
from karui.artifact import Signature, read_signature
from karui.data import open_arrays, save_arrays
from karui.numerics import parse_numerics
from karui.process import serve
from karui.recipe import Named, Recipe, parse_named
from karui.target import Target


def request(
    source: Path, signature: Signature, recipe: Recipe, data: Path, folder: Path, target: Target
) -> dict[str, Any]:
    """The message that asks for a build of ``source`` into the empty ``folder``; ``flags``, the instruction
    sets of the CPU where it will run, are to be added.

    ``data`` holds the arrays ``calibrate`` and ``probe``; a fake-quant reference, where the runtime
    has one, is written to ``reference`` beside ``folder``.
    """
    return {
        "source": str(source),
        "signature": asdict(signature),
        "numerics": str(recipe.numerics),
        "runtime": str(recipe.runtime),
        "data": str(data),
        "folder": str(folder),
        "threads": target.threads,
        "batch": target.batch,
    }


def answer(message: Mapping[str, Any]) -> dict[str, Any]:
    """Build what ``request`` asked for; says what will really be executed."""
    data, folder = Path(message["data"]), Path(message["folder"])
    source = runtimes.Source(
        folder=Path(message["source"]),
        signature=read_signature(message["signature"]),
        numerics=parse_numerics(message["numerics"]),
        calibrate=open_arrays(data / "calibrate"),
        probe=open_arrays(data / "probe"),
        threads=message["threads"],
        batch=message["batch"],
        flags=frozenset(message["flags"]),
    )
    built = build(source, parse_named(message["runtime"]), folder)
    return {"executed": dict(built.executed), "reference": built.reference is not None}


def build(source: runtimes.Source, runtime: Named, folder: Path) -> runtimes.Built:
    """What a runtime makes of ``source``; its reference is written to ``reference`` beside ``folder``."""
    built = runtimes.load(runtime).build(source, folder)
    if built.reference is not None:
        outputs = {port.name: array for port, array in zip(source.signature.outputs, built.reference)}
        save_arrays(outputs, folder.parent / "reference")
    return built


if __name__ == "__main__":
    serve(answer)
