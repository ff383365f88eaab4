"""Check an artifact again: files, answers, accuracy and speed against its run, or against a lock file.

    karui verify run/trials/onnxruntime-int8/artifact --run run
    karui verify shipped --lock karui.lock --data data.py:validation --beside fp32

Exit code 6 when something regressed: changed files, other answers, a lower score, or a measurably lower
speed-up than recorded. With a lock, 5 when it is too noisy to decide.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from karui.cli.lock import AGAINST
from karui.cli.options import declare_json, declare_on
from karui.errors import UsageError

REGRESSION, UNDECIDED = 6, 5
CODES = {"as locked": 0, "regression": REGRESSION, "undecided": UNDECIDED}
LOCK_ONLY = ("data", "beside", "against", "rebuilt", "any_host", "markdown")


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="artifact folder or zip, or a run folder (its best)")
    home = "run folder to compare with (default: the artifact's own)"
    parser.add_argument("--run", dest="home", metavar="FOLDER", type=Path, help=home)
    parser.add_argument("--no-speed", action="store_true", help="leave timing out")
    declare_on(parser)
    declare_json(parser)
    declare_lock(parser.add_argument_group("against a lock file"))


def declare_lock(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--lock", type=Path, metavar="FILE", help="lock file, written by karui lock")
    data = "file.py:name of the confirmation data, where there is no run folder"
    group.add_argument("--data", metavar="SPEC", help=data)
    beside = "artifact to time against, the same as in the lock (repeatable; a run folder has it)"
    group.add_argument("--beside", action="append", default=[], type=Path, metavar="ARTIFACT", help=beside)
    against = "which of the lock's ratios to take again (default: the first at hand)"
    group.add_argument("--against", choices=AGAINST, help=against)
    rebuilt = "it was built again: files may differ"
    group.add_argument("--rebuilt", action="store_true", help=rebuilt)
    any_host = "judge the speed on another kind of machine too"
    group.add_argument("--any-host", action="store_true", help=any_host)
    group.add_argument("--markdown", action="store_true", help="print one line of Markdown")


def run(args: argparse.Namespace) -> int:
    if args.lock is None:
        return run_against_run(args)
    from karui.cli.model import find
    from karui.cli.terminal import prints_aside
    from karui.optimize.gate import Ways, verify_lock

    if args.on:
        raise UsageError("--on does not go with --lock", fix="verify on the machine itself")
    if args.data and args.home:
        raise UsageError("give --run or --data", why="both name the data")
    aside = args.json or args.markdown
    with prints_aside(aside):
        ways = Ways(
            home=args.home,
            data=find(args.data) if args.data else None,
            beside=tuple(args.beside),
            against=args.against,
            rebuilt=args.rebuilt,
            any_host=args.any_host,
            speed=not args.no_speed,
        )
        facts = verify_lock(args.artifact, args.lock, ways)
    if args.json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print(markdown(facts) if args.markdown else gate_text(facts))
    return CODES[facts["verdict"]]


def run_against_run(args: argparse.Namespace) -> int:
    from karui.optimize.again import verify_again

    if stray := [f"--{name.replace('_', '-')}" for name in LOCK_ONLY if getattr(args, name)]:
        raise UsageError(f"{', '.join(stray)} is for verifying against a lock", fix="name it with --lock")
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


def gate_text(facts: dict[str, Any]) -> str:
    marks = {"as locked": "ok  ", "regression": "FAIL", "undecided": "?   ", "told": "    "}
    verdict = facts["verdict"]
    head = f"{facts['recipe']}: {verdict.upper() if verdict == 'regression' else verdict}"
    checks = [f"  {marks[one['verdict']]} {one['name']}: {one['detail']}" for one in facts["checks"]]
    return "\n".join([head, *checks, *(f"       {note}" for note in facts["notes"])])


def markdown(facts: dict[str, Any]) -> str:
    """One line; what decided stands first."""
    order = ("regression", "undecided", "told", "as locked")
    checks = sorted(facts["checks"], key=lambda one: order.index(one["verdict"]))
    parts = [f"{one['name']} {one['verdict']} ({one['detail']})" for one in checks]
    line = f"**{facts['verdict']}** `{facts['recipe']}`: " + "; ".join(parts)
    return " ".join(line.replace("|", "\\|").split())
