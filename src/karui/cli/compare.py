"""Put finished runs side by side: what changed beyond both intervals, what is new, what has gone.

For example:

    karui compare karui-runs/before karui-runs/after
    karui compare old/result.json new/result.json --markdown

Where machine, threads, batch or model differ, seconds cannot be compared; speed-ups against each
run's own original can.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from karui.cli.finished import columns, find_result
from karui.cli.options import declare_json
from karui.errors import UsageError

MOST = 26  # runs are called by the letters of the alphabet


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="run", help="run folders, or result.json files"
    )
    parser.add_argument("--markdown", action="store_true", help="print a table for a pull request")
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.report.beside import markdown, text
    from karui.report.between import compare

    if not 2 <= len(args.folders) <= MOST:
        raise UsageError(f"{len(args.folders)} runs were given", fix=f"name 2 to {MOST} runs")
    results = [(str(folder), find_result(folder)) for folder in args.folders]
    if args.json:
        print(json.dumps(compare(results), ensure_ascii=False))
    else:
        print((markdown(results) if args.markdown else text(results, columns())).rstrip())
    return 0
