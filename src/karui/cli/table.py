"""Show the trade-offs by kind: the best row of a run for each technique, as textbooks compare them.

For example:

    karui table                                 of the newest run
    karui table karui-runs/NAME --markdown

A kind that the run has no row of shows a dash, with the reason.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from karui.cli.finished import RUN_FORMS, columns, find_result
from karui.cli.options import declare_json


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, metavar="run", help=RUN_FORMS)
    parser.add_argument("--markdown", action="store_true", help="print it as Markdown")
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.report.kinds import table
    from karui.report.markdown import kinds
    from karui.report.tradeoffs import text

    result = find_result(args.folder)
    if args.json:
        print(json.dumps(table(result), ensure_ascii=False))
    else:
        print((kinds(result) if args.markdown else text(result, columns())).rstrip())
    return 0
