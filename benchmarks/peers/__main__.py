"""karui beside the tools that do a part of its work.

python -m benchmarks.peers --build                                       every tool but karui, with scores
python -m benchmarks.peers --karui                                       karui, on a quiet machine
python -m benchmarks.peers --table > benchmarks/results/peers.md         times, on a quiet machine
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.peers._build import LIMIT_S, build
from benchmarks.peers._given import TASKS
from benchmarks.peers._measure import score_all
from benchmarks.peers._registry import tools, ways
from benchmarks.peers._table import show


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", action="store_true", help="what has no row yet; delete a row to redo it")
    parser.add_argument("--karui", action="store_true", help="the same for karui, which goes on where it was")
    parser.add_argument("--table", action="store_true", help="score and time what there is, and print it")
    parser.add_argument("--tools", nargs="+", default=[t for t in tools() if t != "karui"], choices=tools())
    parser.add_argument("--ways", nargs="+", default=[], help="only these, such as: --karui --ways defaults")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--runs", type=Path, default=Path("karui-runs/peers"))
    parser.add_argument("--minutes", type=float, default=LIMIT_S / 60, help="for each way of a tool")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no tool goes on alone
    chosen = args.tools * args.build + ["karui"] * args.karui
    if unknown := set(args.ways) - {way for tool in chosen for way in ways(tool)}:
        parser.error(f"no way {', '.join(sorted(unknown))} of {', '.join(chosen) or 'no tool'}")
    for tool in chosen:
        for task in args.tasks:
            # karui counts its minutes itself, and needs some more to time its finalists
            build(args.runs, task, tool, 60 * args.minutes * (2 if tool == "karui" else 1), args.ways)
            score_all(args.runs, task)
    if args.table:
        show(args.runs, args.tasks)


if __name__ == "__main__":
    main()
