"""The report as one file that needs nothing else: styles, script, pictures and data inside."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from karui.report import fields, sections
from karui.report.fields import Json
from karui.report.sections import esc
from karui.report.view import Run, read

MOST_BYTES = 2_000_000
Pictures = Mapping[str, tuple[str, str]]


def html(result: Json) -> str:
    """The page, at most ``MOST_BYTES`` of UTF-8: where data would break that, they are left out."""
    run = read(result)
    pictures, note = draw(run)
    body = sections.body(run, pictures, note)
    made = ""
    for kept in embeddable(result):
        made = page(run, body, kept)
        if len(made.encode()) <= MOST_BYTES:
            break
    return made


def draw(run: Run) -> tuple[Pictures, str]:
    """The pictures, or none and a word about what to install."""
    try:
        charts: Any = importlib.import_module("karui.report.charts")
    except ImportError:
        return {}, "The pictures are missing: matplotlib is not installed (pip install 'karui[report]')."
    return charts.draw(run), ""


def embeddable(result: Json) -> list[Json | None]:
    """The result in full, then without raw samples, then not at all."""
    trials = [
        {key: value for key, value in trial.items() if key != "samples_s"}
        for trial in fields.objects(result, "trials")
    ]
    return [result, {**result, "trials": trials}, None]


def page(run: Run, body: str, data: Json | None) -> str:
    style, script = asset("style.css"), asset("script.js")
    name = fields.text(run.data, "task", "name") or fields.text(run.data, "task", "model")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{esc(" · ".join(part for part in (name, "karui report") if part))}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="result">{embedded(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def policy(script: str) -> str:
    """Nothing may be loaded and no script may run but ours."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def embedded(data: Json | None) -> str:
    """JSON that can neither end its element nor open a comment."""
    text = json.dumps(fields.storable(data), ensure_ascii=True, allow_nan=False, default=str)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def asset(name: str) -> str:
    return files("karui.report").joinpath(name).read_text("utf-8").strip()
