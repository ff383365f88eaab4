"""Finding what the user names: a Task, a model or data, from a script, a module or a model file.

A script that the user names is the user's code and runs; its own folder is importable.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from karui.blame import users_code
from karui.errors import UsageError, first_lines, foreign
from karui.task import Task

FORMS = "file.py:name, package.module:name, a .pt2, a TorchScript file or an .onnx file"
NAMED = ("train", "calibrate", "select", "confirm", "teacher", "student")  # parts of a task
SCRIPT = "name the script that builds the network: file.py:name"
MODEL_FILES = (".pt2", ".onnx", ".pt", ".pth", ".ts", ".safetensors", ".bin", ".ckpt")


def find(spec: str) -> Any:
    """The object that ``spec`` names; a function named ``task`` is called."""
    if spec.lower().endswith(MODEL_FILES):
        return open_model(Path(spec))
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise UsageError(f"cannot read {spec!r}", fix=f"write {FORMS}")
    module = from_file(Path(where)) if where.endswith(".py") else from_name(where)
    found: Any = module
    for part in name.split("."):
        if part not in dir(found):
            near = ", ".join(n for n in vars(module) if not n.startswith("_"))[:200]
            raise UsageError(f"{where} has no {name!r}", fix=f"it has: {near}")
        found = getattr(found, part)
    return found


def from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    sys.path.insert(0, str(path.resolve().parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of {path.resolve()}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    executed(partial(found.loader.exec_module, module), str(path))
    return module


def from_name(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    executed(partial(importlib.import_module, name), name)
    return sys.modules[name]


def executed(action: Callable[[], Any], what: str) -> None:
    """Run the user's own module; whatever it raises is told with its file and line."""
    try:
        with users_code(UsageError, f"{what} could not be run", fix="mend the script"):
            action()
    except SystemExit as end:
        raise UsageError(
            f"{what} ended the program while it was read",
            why=f"it called sys.exit({end.code!r})",
            fix="put what the script does under: if __name__ == '__main__':",
        ) from end


def open_model(path: Path) -> Any:
    """A model from a file: an exported program, a TorchScript module, or the path of an ONNX file."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    ending = path.suffix.lower()
    if ending == ".onnx":
        return path
    if ending == ".safetensors":
        raise UsageError(state_dict_words(path), fix=SCRIPT)
    if ending == ".pt2":
        from karui.graph.program import as_module

        return as_module(path)
    return torch_file(path)


def torch_file(path: Path) -> Any:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            reason = first_lines(error, 160)
    try:
        with foreign(UsageError, f"{path.name} is no TorchScript file and no state dict", fix=SCRIPT):
            torch.load(path, map_location="cpu", weights_only=True)
    except UsageError as error:
        if path.read_bytes()[:1] not in (b"P", b"\x80"):  # neither a zip nor a pickle
            raise
        if type(error.__cause__).__name__ != "UnpicklingError":
            raise
        why = f"unpickling runs code hidden in the file; {reason}"
        raise UsageError(f"{path.name} is a pickled model", why=why, fix=SCRIPT) from error
    raise UsageError(state_dict_words(path), fix=SCRIPT)


def state_dict_words(path: Path) -> str:
    return f"{path.name} is a bare state dict: it holds weights but not the network they belong to"


def find_task(spec: str, data: dict[str, Any]) -> Task:
    """The Task that ``spec`` names, or one around the model it names with ``data`` filled in.

    ``data``: specs or None for each of NAMED, score and inputs.
    """
    from torch import nn

    found = find(spec)
    if callable(found) and not isinstance(found, (nn.Module, type)) and not isinstance(found, Path):
        found = call_factory(found, spec)
    if isinstance(found, type):
        found = call_factory(found, spec)
    given = {key: find(value) for key, value in data.items() if key in NAMED and value}
    if isinstance(found, Task):
        changed = given | ({"score": score_of(data["score"])} if data.get("score") else {})
        changed |= {"inputs": data["inputs"]} if data.get("inputs") is not None else {}
        return Task(**{**vars(found), **changed, "name": found.name or spec})
    score = score_of(data.get("score") or "top1")
    return Task(found, data.get("inputs"), score=score, name=spec, **given)


def score_of(text: str) -> Any:
    return find(text) if ":" in text else text


def call_factory(factory: Any, spec: str) -> Any:
    with users_code(
        UsageError, f"calling {spec} failed", fix="it must be a Task, a module, or need no arguments"
    ):
        return factory()
