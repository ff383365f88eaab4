"""Answer a karui on another machine, over standard input and output; started by SSH, not by hand.

For example, on the other machine:

    karui optimize task.py:task --on ssh://board     runs "karui agent" on the host "board"

It keeps what it is sent in a temporary folder, runs measuring processes there, and ends with the connection.
"""

from __future__ import annotations

import argparse
import sys

from karui.errors import UsageError
from karui.units import parse_bytes


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--most", default="8GB", metavar="8GB", help="keep at most this (default: 8GB)")


def run(args: argparse.Namespace) -> int:
    if sys.stdin.isatty():
        raise UsageError("an agent speaks with another karui", fix="there: karui optimize --on ssh://HERE")
    from karui.agent import serve

    serve(parse_bytes(args.most))
    return 0
