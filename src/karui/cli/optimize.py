"""Try every recipe for a target on your model and data; choose the fastest inside the accuracy budget.

For example:

    karui optimize task.py:task --max-drop 0.5
    karui optimize net.py:build --select data.py:validation --target cpu --batch 64 --max-drop 1%

Exit codes are listed by karui --help.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karui.cli.options import (
    TASK_FORMS,
    budget_of,
    declare_data,
    declare_run,
    declare_target,
    example_inputs,
    settings_of,
    target_of,
)
from karui.errors import Interrupted

SAVED = (
    "task",
    "inputs",
    "train",
    "calibrate",
    "select",
    "confirm",
    "score",
    "target",
    "runtimes",
    "recipe",
    "batch",
    "threads",
    "seed",
    "on",
    "max_drop",
    "max_latency",
    "max_size",
    "time",
    "stop_at",
    "mixed",
    "search",
    "screen",
    "objective",
    "confidence",
    "jobs",
    "ray",
    "trial_cpus",
    "trial_memory",
    "pace",
    "timeout",
)


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help=TASK_FORMS)
    declare_data(parser)
    declare_target(parser)
    parser.add_argument("--max-drop", metavar="0.5", help="points of the score (0.5), or relative (1%%)")
    parser.add_argument("--max-latency", metavar="3ms", help="reject what is slower at the median")
    parser.add_argument("--max-size", metavar="1MB", help="reject what is larger on disk")
    declare_recipes(parser)
    parser.add_argument(
        "--objective",
        choices=("latency", "size", "memory"),
        default="latency",
        help="what shall be least inside the budget (default: latency)",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        metavar="0.95",
        help="how sure it has to be that no more is lost; 0.5 takes the drop as it was measured",
    )
    declare_help(parser)
    declare_run(parser)


def declare_recipes(parser: argparse.ArgumentParser) -> None:
    """What is tried beside those that are listed."""
    parser.add_argument(
        "--mixed",
        type=int,
        default=4,
        metavar="N",
        help="INT8 models with some layers in float, tried for each that misses the budget (default: 4)",
    )
    parser.add_argument(
        "--search",
        type=int,
        default=0,
        metavar="N",
        help="after these, N recipes composed where the trials before say that they may be the best",
    )
    parser.add_argument(
        "--screen",
        type=int,
        default=3,
        metavar="N",
        help="of those that train, N are looked at with a tenth of the training for each that is tried; "
        "0 for none (default: 3)",
    )


def declare_help(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs",
        type=int,
        default=0,
        metavar="N",
        help="build, train and score trials in N processes; each is timed when none of them works",
    )
    parser.add_argument(
        "--ray",
        default="",
        metavar="ADDRESS",
        help="do so on this Ray cluster, HOST:PORT or auto, in --jobs processes at most",
    )
    parser.add_argument(
        "--trial-cpus",
        type=int,
        default=0,
        metavar="N",
        help="CPUs for each of them (default: an even share of this machine, 1 of a cluster's)",
    )
    parser.add_argument("--trial-memory", metavar="2GB", help="memory for each of them (default: no limit)")


def run(args: argparse.Namespace) -> int:
    from karui.api import new_folder

    options = {key: getattr(args, key) for key in SAVED}
    folder = args.out or new_folder(Path("karui-runs"))
    command = shlex.join(["karui", *sys.argv[1:]])
    return carry_out(options, folder, command, as_json=args.json)


def carry_out(options: Mapping[str, Any], folder: Path, command: str, *, as_json: bool) -> int:
    """Run, or go on with, the run in ``folder`` that these options describe."""
    from karui.cli.model import find_task
    from karui.cli.terminal import Terminal, prints_aside, show_result
    from karui.optimize import run as optimize

    target, budget = target_of(options), budget_of(options)
    watcher = Terminal()
    words = {"options": dict(options), "command": command, "folder": str(Path.cwd())}
    settings = dataclasses.replace(settings_of(options, command), watcher=watcher, words=words)
    try:
        with prints_aside(as_json):
            task = find_task(options["task"], {**options, "inputs": example_inputs(options["inputs"])})
            result = optimize(task, target, budget, folder, settings)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what is finished is kept", fix=f"karui resume {folder}") from None
    finally:
        watcher.close()
    return show_result(result, as_json)
