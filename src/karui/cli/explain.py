"""Say in words why a candidate was chosen or not, what really executes, and what to try next.

For example:

    karui explain                                  the best of the newest run
    karui explain int8@openvino karui-runs/NAME    one recipe, or an id

Nothing is measured: every sentence follows from the run's result.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from karui.cli.finished import RUN_FORMS, find_result, width
from karui.cli.options import declare_json

BEST = "best"


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", default=BEST, help="best (default), a recipe, or a trial's id")
    parser.add_argument("folder", nargs="?", type=Path, metavar="run", help=RUN_FORMS)
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.report.explain import explain, text

    what, folder = meant(args.what, args.folder)
    facts = explain(find_result(folder), what)
    print(json.dumps(facts, ensure_ascii=False) if args.json else text(facts, width()).rstrip())
    return 0


def meant(what: str, folder: Path | None) -> tuple[str, Path | None]:
    """A single word that is a path names the run; no id and no recipe looks like one."""
    a_path = Path(what).exists() or ("/" in what and "@" not in what)
    if folder is None and what != BEST and a_path:
        return BEST, Path(what)
    return what, folder
