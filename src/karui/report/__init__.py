"""A result for people: terminal, Markdown and one HTML file. The only place that says "ms"."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from karui.report import fields
from karui.report.fields import Json


def write(result: Json, folder: str | Path) -> list[Path]:
    """Write report.html, report.md and result.json into ``folder``; each is whole or as it was."""
    from karui.report.html import html
    from karui.report.markdown import markdown

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"report.html": html(result), "report.md": markdown(result), "result.json": to_json(result)}
    return [replace(folder / name, text) for name, text in texts.items()]


def to_json(result: Json) -> str:
    """The result as standard JSON: what is not a number becomes null."""
    return json.dumps(fields.storable(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def replace(path: Path, text: str) -> Path:
    """Put ``text`` in place of the file in one move, so that nobody reads half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(name).chmod(0o666 & ~umask())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
