"""Make your model narrower and nothing else: channels, heads and hidden units removed, no training.

For example:

    karui prune task.py:task --macs 0.5
    karui prune net.py:build --calibrate data.py:images --ratio 0.25 --option multiple_of=8

Validation data are not needed; with them the score before and after is told. The new folder holds
the weights and what was kept: karui.load_pruned(folder, net) opens it. Exit codes are listed by
karui --help.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.cli.options import TASK_FORMS, declare_data, declare_json, example_inputs
from karui.errors import UsageError

if TYPE_CHECKING:
    from karui.recipe import Named

GOALS = ("ratio", "macs", "parameters")


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help=TASK_FORMS)
    declare_data(parser)
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--ratio", type=float, metavar="0.5", help="share of each layer's units that goes")
    goal.add_argument("--macs", type=float, metavar="0.5", help="share of multiply-accumulates that stays")
    goal.add_argument("--parameters", type=float, metavar="0.5", help="share of parameters that stays")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any option of prune_channels as in recipes, e.g. importance=ln (repeatable)",
    )
    parser.add_argument("--out", type=Path, help="new folder (default: a new one under karui-pruned)")
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.api import new_folder, prune
    from karui.cli.model import find_task
    from karui.cli.terminal import prints_aside

    folder = args.out or new_folder(Path("karui-pruned"))
    if folder.exists():
        raise UsageError(f"{folder} is there already", fix="name a new folder")
    with prints_aside(args.json):
        task = find_task(args.task, {**vars(args), "inputs": example_inputs(args.inputs)})
        pruned = prune(task, technique_of(args))
    pruned.save(folder)
    show(pruned.manifest.recipe, folder, pruned.facts, as_json=args.json)
    return 0


def technique_of(args: argparse.Namespace) -> Named:
    from karui.recipe import Named, parse_option

    goals = [(name, getattr(args, name)) for name in GOALS if getattr(args, name) is not None]
    return Named("prune_channels", (*goals, *(parse_option(text, "--option") for text in args.option)))


def show(recipe: str, folder: Path, facts: Any, *, as_json: bool) -> None:
    from karui.report.alone import text
    from karui.report.fields import storable

    if as_json:
        found = {"schema": "karui.prune/1", "recipe": recipe, "folder": str(folder), **facts}
        print(json.dumps(storable(found), ensure_ascii=False))
        return
    print(f"{recipe}\n{text(facts)}")
    print(f"folder: {folder}")
