"""Measure a model on every runtime and precision, or finished artifacts side by side; needs no data.

For example:

    karui bench net.py:build --inputs 1x3x32x32
    karui bench karui-runs/a/trials/x/artifact karui-runs/a/trials/y/artifact

Exit codes are listed by karui --help.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

from karui.cli.options import (
    TASK_FORMS,
    budget_of,
    declare_run,
    declare_target,
    example_inputs,
    settings_of,
    target_of,
)
from karui.errors import UsageError


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", help=f"a model ({TASK_FORMS}), or artifact folders")
    parser.add_argument("--inputs", metavar="1x3x32x32", help="example inputs (a Task has its own)")
    declare_target(parser)
    declare_run(parser)


def run(args: argparse.Namespace) -> int:
    if all((Path(what) / "manifest.json").is_file() for what in args.what):
        return bench_artifacts(args)
    if len(args.what) > 1:
        raise UsageError("give one model, or folders that are all artifacts")
    return bench_model(args)


def bench_model(args: argparse.Namespace) -> int:
    from karui import api
    from karui.cli.model import find_task
    from karui.cli.terminal import Terminal, prints_aside, show_result

    options = vars(args) | {"max_drop": "100"}
    target, budget = target_of(options), budget_of(options)
    watcher = Terminal()
    words = settings_of(options, shlex.join(["karui", *sys.argv[1:]]))
    settings = dataclasses.replace(words, watcher=watcher)
    try:
        with prints_aside(args.json):
            task = find_task(args.what[0], {"inputs": example_inputs(args.inputs)})
            if task.inputs is None:
                raise UsageError("example inputs are needed", fix="--inputs 1x3x32x32")
            task = api.bench_task(task.model, task.inputs)
            result = api.optimize(task, target, budget=budget, out=args.out, settings=settings)
    finally:
        watcher.close()
    show_result(result, args.json)
    return 0


def bench_artifacts(args: argparse.Namespace) -> int:
    from karui.bench.compare import compare
    from karui.bench.machine import Conditions
    from karui.bench.remote import machine_at
    from karui.process import Limits
    from karui.report.text import compared

    settings = settings_of(vars(args), "")
    with machine_at(args.on) as machine:
        conditions = Conditions(args.batch, args.threads, Limits(settings.limits.seconds), machine)
        rows = compare([Path(what) for what in args.what], conditions, settings.final, args.seed)
    facts: dict[str, Any] = {
        "schema": "karui.bench/1",
        "batch": args.batch,
        "threads": args.threads,
        "rows": rows,
    }
    if args.json:
        import json

        print(json.dumps(facts, ensure_ascii=False))
    else:
        print(compared(facts))
    return 0
