"""LiteRT's converter, whose packages fit no other runtime's: a process of an environment of its own.

It is taken from this environment where it is importable, else from the Python that ``KARUI_LITERT_PYTHON``
names, else from the folder ``.venv-litert`` beside this environment's.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from karui.errors import BuildFailed, MeasureFailed, MissingRuntime
from karui.process import Child, Limits

PACKAGE = "litert_torch"
NAMED = "KARUI_LITERT_PYTHON"
FOLDER = ".venv-litert"
SCRIPT = Path(__file__).with_name("litert_script.py")


def convert(asked: Mapping[str, Any]) -> str:
    """Have written what ``litert_script`` is asked for; gives the converter's version.

    Raises MissingRuntime, BuildFailed.
    """
    child = process(python())
    try:
        return str(child.ask(asked)["converter"])
    except MeasureFailed as error:
        process.cache_clear()  # it has ended, or was stopped
        raise BuildFailed("LiteRT's converter could not take the model", why=error.line) from error


def lacking() -> str:
    """The command that brings the converter; empty where it is there."""
    named = os.environ.get(NAMED)
    if find_spec(PACKAGE) or Path(named or beside()).is_file():
        return ""
    return command() + (f" ({NAMED} names no Python: {named})" if named else "")


def python() -> str:
    """The Python that has the converter."""
    if fix := lacking():
        raise MissingRuntime("LiteRT's converter is not installed", fix=fix)
    return sys.executable if find_spec(PACKAGE) else os.environ.get(NAMED) or str(beside())


def beside() -> Path:
    return Path(sys.prefix).parent / FOLDER / "bin" / "python"


def command() -> str:
    """A program that torch has saved is read by the same torch."""
    home, torch = beside().parent.parent, importlib.metadata.version("torch").partition("+")[0]
    return f"python3 -m venv {home} && {home}/bin/pip install torch=={torch} 'litert-torch>=0.10,<0.11'"


@functools.cache
def process(path: str) -> Child:
    """Kept for this process's life, as the builder is for a run's: importing the converter takes seconds.

    Isolated (``-I``): the script's folder holds modules named like those of the standard library.
    """
    home = tempfile.TemporaryDirectory(prefix="karui-litert-")
    log, command = Path(home.name) / "converter.log", (path, "-I", str(SCRIPT))
    child = Child("litert converter", [], log, os.cpu_count() or 1, Limits(), command)
    atexit.register(home.cleanup)
    atexit.register(child.kill)
    return child
