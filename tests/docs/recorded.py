"""Real runs that docs/reading.md is printed from.

``python -m tests.docs.recorded RUN NAME`` from the root keeps the document of one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from karui.cli.main import main

RUNS = Path(__file__).parent / "runs"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reading.md"
BLOCK = re.compile(r"^```console\n\$ (karui [^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WIDTH = "96"


def keep(folder: Path, name: str) -> None:
    """The result document without raw samples, histograms and the output folder of the call."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    found["command"] = re.sub(r" --out \S+", "", found["command"])
    for trial in found["trials"]:
        trial["samples_s"] = None
        if trial["quality"]:
            trial["quality"]["per_class"] = []
        for check in (trial["verification"] or {}).get("checks", []):
            check["detail"] = ""
        for layer in (trial["executed"] or {}).get("layers", []):
            layer.pop("weights", None), layer.pop("inputs", None)
    RUNS.mkdir(exist_ok=True)
    (RUNS / f"{name}.json").write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


def printed(command: str) -> str:
    """What a command prints in a folder with the recorded runs under karui-runs."""
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as home, contextlib.chdir(home):
        for recorded in RUNS.glob("*.json"):
            folder = Path("karui-runs") / recorded.stem
            folder.mkdir(parents=True)
            (folder / "result.json").write_bytes(recorded.read_bytes())
        with mock.patch.dict(os.environ, {"COLUMNS": WIDTH}), contextlib.redirect_stdout(out):
            assert main(shlex.split(command)[1:]) == 0, command
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def page(text: str) -> str:
    """The page with every output as it is printed now; a command without output stays without."""

    def block(found: re.Match[str]) -> str:
        output = f"{printed(found[1])}\n" if found[2].strip() else ""
        return f"```console\n$ {found[1]}\n{output}```"

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2])
