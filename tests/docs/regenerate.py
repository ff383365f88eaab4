"""Writes the help texts into docs/cli.md, and what verbs print of recorded runs into docs/reading.md.

``python -m tests.docs.regenerate`` from the root.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from unittest import mock

from tests.docs import recorded

from karui.cli.main import VERBS, parser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
WIDTH = "100"
START, END = "<!-- help -->\n", "<!-- /help -->"


def main() -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{START}{help_block()}{END}{after}", encoding="utf-8")
    reading = recorded.PAGE.read_text(encoding="utf-8")
    recorded.PAGE.write_text(recorded.page(reading), encoding="utf-8")


def help_block() -> str:
    """``karui --help`` and that of every verb, as Markdown."""
    parts = [("karui", help_of([])), *((f"karui {verb}", help_of([verb])) for verb in VERBS)]
    return "".join(f"\n### {name}\n\n```text\n{text}\n```\n" for name, text in parts) + "\n"


def help_of(verb: list[str]) -> str:
    printed = io.StringIO()
    plain = {"COLUMNS": WIDTH, "NO_COLOR": "1"}
    with (
        mock.patch.dict(os.environ, plain),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        parser().parse_args([*verb, "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def words(text: str) -> list[str]:
    """Text without its line breaks, which differ between versions of Python."""
    return re.sub(r"\s+", " ", text).split(" ")


if __name__ == "__main__":
    main()
