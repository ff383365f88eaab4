"""Which finished run a verb is about: a folder, its result.json, or the newest one."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karui.errors import UsageError, foreign
from karui.journal import START

RUNS = Path("karui-runs")
RUN_FORMS = "run folder, or a result.json (default: the newest finished run under karui-runs)"
SCHEMA = "karui.result/"


def find_result(path: Path | None) -> Mapping[str, Any]:
    """The result document. Raises UsageError where there is none, or it is something else."""
    path = path or newest_finished(RUNS)
    if not path.exists():
        others = ", ".join(known())
        raise UsageError(f"there is no run {path}", fix=f"one of: {others}" if others else START)
    file = path / "result.json" if path.is_dir() else path
    if not file.is_file():
        raise unfinished(path)
    with foreign(UsageError, f"{file} cannot be read", fix="name a run folder, or its result.json"):
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, str) or not schema.startswith(SCHEMA):
        raise UsageError(f"{file} is not the result of a run", why=f"its schema is {schema!r}")
    return dict(found)


def unfinished(folder: Path) -> UsageError:
    """No result: the run was interrupted, or there never was one."""
    if (folder / "run.json").is_file():
        return UsageError(f"{folder} holds no finished run", fix=f"karui resume {folder}")
    if (folder / "journal.jsonl").is_file():
        fix = "call karui.optimize(...) again with the same out: it goes on"
        return UsageError(f"{folder} holds no finished run", fix=fix)
    return UsageError(f"{folder} holds no run", why="there is no result.json", fix="name the folder of a run")


def newest_finished(parent: Path) -> Path:
    found = [path.parent for path in parent.glob("*/result.json")]
    if not found:
        raise UsageError(f"no finished run under {parent}", fix="name the run folder")
    return max(found, key=lambda run: (run / "result.json").stat().st_mtime)


def known(most: int = 5) -> list[str]:
    """The newest finished runs, by folder."""
    found = sorted(RUNS.glob("*/result.json"), key=lambda file: -file.stat().st_mtime)
    return [str(file.parent) for file in found[:most]]


def columns() -> int | None:
    """Columns that a table may take; None for a pipe, whose reader may scroll."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def width() -> int:
    """Columns to wrap prose at: the terminal's, 100 at most, and 100 in a pipe."""
    return min(shutil.get_terminal_size((100, 24)).columns, 100)
