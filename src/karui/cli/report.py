"""Write the report of a finished run again: report.html, report.md and result.json.

For example:

    karui report karui-runs/NAME --to public
    karui report karui-runs/NAME --summary >> "$GITHUB_STEP_SUMMARY"

With --summary nothing is written: a short Markdown block for a CI job or a pull request is printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from karui.cli.finished import find_result
from karui.cli.options import declare_json


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="run folder")
    parser.add_argument("--to", type=Path, help="folder to write into (default: the run folder)")
    parser.add_argument("--summary", action="store_true", help="print a short Markdown block instead")
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.summary:
        return show_summary(args.folder, args.json)
    from karui.optimize.result import open_result

    paths = [str(path) for path in open_result(args.folder).report(args.to or args.folder)]
    print(json.dumps({"schema": "karui.report/1", "paths": paths}) if args.json else "\n".join(paths))
    return 0


def show_summary(folder: Path, as_json: bool) -> int:
    from karui.report.markdown import summary

    text = summary(find_result(folder))
    print(json.dumps({"schema": "karui.report/1", "summary": text}, ensure_ascii=False) if as_json else text)
    return 0
