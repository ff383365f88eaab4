"""Write a lock file: what an artifact is like, for karui verify in a repository's CI.

For example:

    karui lock karui-runs/NAME -o karui.lock
    karui lock karui-runs/NAME/trials/onnxruntime-int8/artifact --max-slower 10%

The artifact is checked, scored on the confirmation split and timed once more, in many openings. The lock
holds digests, outcomes and ratios, and no data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from karui.cli.options import declare_json
from karui.errors import UsageError

LEAST_OPENINGS = 4
AGAINST = ("same_runtime", "original")


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="run folder (its best), or artifact folder or zip")
    home = "run folder it came from (default: the artifact's own)"
    parser.add_argument("--run", dest="home", metavar="FOLDER", type=Path, help=home)
    where = "lock file to write (default: karui.lock)"
    parser.add_argument("-o", "--out", type=Path, default=Path("karui.lock"), help=where)
    parser.add_argument("--force", action="store_true", help="write over an older lock")
    drop = "what a later artifact may lose: points of the score, or relative (default: 0.5, or 0.5%%)"
    parser.add_argument("--max-drop", metavar="0.5", help=drop)
    slower = "how much slower it may be (default: 5%%); twice that is found in 95 of 100 cases"
    parser.add_argument("--max-slower", metavar="5%", default="5%", help=slower)
    against = "time it only against this (default: both, where the run has them)"
    parser.add_argument("--against", choices=AGAINST, help=against)
    openings = "fresh processes to time it in, at least (default: 12)"
    parser.add_argument("--openings", type=int, default=12, metavar="N", help=openings)
    parser.add_argument("--no-speed", action="store_true", help="leave timing out")
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.optimize.lock import check_free, write_lock
    from karui.optimize.locked import Effort, make_lock

    if args.openings < LEAST_OPENINGS:
        raise UsageError(f"--openings must be at least {LEAST_OPENINGS}, got {args.openings}")
    check_free(args.out, force=args.force)
    openings = 0 if args.no_speed else args.openings
    effort = Effort(openings, args.against)
    facts = make_lock(args.artifact, args.home, allowed_of(args), effort)
    facts = write_lock(facts, args.out, force=args.force)
    print(json.dumps(facts, ensure_ascii=False) if args.json else f"{args.out}: {words(facts)}")
    return 0


def allowed_of(args: argparse.Namespace) -> Any:
    from karui.budget import parse_drop
    from karui.optimize.locked import Allowed

    drop, unit = parse_drop(args.max_drop) if args.max_drop else (None, "points")
    slower, kind = parse_drop(args.max_slower)
    if kind != "relative" or not slower:
        raise UsageError(f"{args.max_slower!r} is no slowdown", fix="a share above zero: 5%")
    return Allowed(drop=drop, unit=unit, slower=slower / 100)  # type: ignore[arg-type]


def words(facts: dict[str, Any]) -> str:
    score, speed = facts["score"], facts["speed"]
    ratios = [f"{row['ratio']:.3g}x as fast as {row['recipe']}" for row in speed] or ["not timed"]
    size = f"{facts['artifact']['size_bytes']:,} bytes"
    return ", ".join([facts["artifact"]["recipe"], f"{score['name']} {score['value']:.4f}", size, *ratios])
