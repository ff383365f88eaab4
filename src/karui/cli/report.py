"""Write the report of a finished run again: report.html, report.md and result.json."""

from __future__ import annotations

import argparse
from pathlib import Path


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="run folder")
    parser.add_argument("--to", type=Path, help="folder to write into (default: the run folder)")


def run(args: argparse.Namespace) -> int:
    from karui.optimize.result import open_result

    for path in open_result(args.folder).report(args.to or args.folder):
        print(path)
    return 0
