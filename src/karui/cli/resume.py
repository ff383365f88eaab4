"""Go on with an interrupted run: at most the trial that was running is repeated.

For example:

    karui resume                  the newest unfinished run under karui-runs
    karui resume karui-runs/NAME

Exit codes are listed by karui --help.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from karui.cli.options import declare_json
from karui.errors import UsageError, foreign
from karui.journal import START


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, help="run folder")
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.cli.optimize import carry_out
    from karui.cli.terminal import show_result
    from karui.optimize.result import open_result

    folder = (args.folder or newest_unfinished(Path("karui-runs"))).resolve()
    if is_finished(folder):
        return show_result(open_result(folder), args.json)
    saved = saved_call(folder)
    os.chdir(saved["folder"])
    return carry_out(saved["options"], folder, saved["command"], as_json=args.json)


def saved_call(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        raise UsageError(f"{folder} is not a run of karui optimize", why="it holds no run.json", fix=START)
    with foreign(UsageError, f"{path} cannot be read", fix="give the whole command again, with a new --out"):
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def is_finished(folder: Path) -> bool:
    from karui import journal

    events = journal.read(folder)
    return bool(events) and events[-1].get("event") == "end" and (folder / "result.json").is_file()


def newest_unfinished(parent: Path) -> Path:
    runs = [path.parent for path in parent.glob("*/run.json") if not is_finished(path.parent)]
    if not runs:
        raise UsageError(f"no unfinished run under {parent}", fix="name the run folder")
    return max(runs, key=lambda run: run.stat().st_mtime)
