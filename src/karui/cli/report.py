"""Write the report of a finished run again: report.html, report.md and result.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from karui.cli.options import declare_json


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="run folder")
    parser.add_argument("--to", type=Path, help="folder to write into (default: the run folder)")
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.optimize.result import open_result

    paths = [str(path) for path in open_result(args.folder).report(args.to or args.folder)]
    print(json.dumps({"schema": "karui.report/1", "paths": paths}) if args.json else "\n".join(paths))
    return 0
