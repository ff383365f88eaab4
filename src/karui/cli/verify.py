"""Check an artifact again: files, answers, accuracy and speed against the run it came from.

    karui verify run/trials/onnxruntime-int8/artifact --run run
Exit code 6 when something regressed: changed files, other answers, a score over the budget, or a
measurably lower speed-up than recorded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from karui.cli.options import declare_json, declare_on

REGRESSION = 6


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="artifact folder or zip, or a run folder (its best)")
    home = "run folder to compare with (default: the artifact's own)"
    parser.add_argument("--run", dest="home", metavar="FOLDER", type=Path, help=home)
    parser.add_argument("--no-speed", action="store_true", help="leave timing out")
    declare_on(parser)
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.optimize.again import verify_again

    facts = verify_again(args.artifact, args.home, speed=not args.no_speed, on=args.on)
    if args.json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        show(facts)
    return 0 if facts["ok"] else REGRESSION


def show(facts: dict[str, Any]) -> None:
    print(f"{facts['recipe']}: {'as recorded' if facts['ok'] else 'REGRESSION'}")
    for check in facts["checks"]:
        print(f"  {'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {check['detail']}")
