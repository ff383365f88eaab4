"""Prune your model and nothing else: channels, heads and hidden units removed, or single weights set to
zero (--sparsity, --pattern); no training.

For example:

    karui prune task.py:task --macs 0.5
    karui prune net.py:build --calibrate data.py:images --ratio 0.25 --option multiple_of=8
    karui prune task.py:task --sparsity 0.9

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

GOALS = ("ratio", "macs", "parameters", "size", "sparsity")
OF_WEIGHTS = ("sparsity", "pattern")  # options of prune_weights; the others are of prune_channels


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help=TASK_FORMS)
    declare_data(parser)
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--ratio", type=float, metavar="0.5", help="share of each layer's units that goes")
    goal.add_argument("--macs", type=float, metavar="0.5", help="share of multiply-accumulates that stays")
    goal.add_argument("--parameters", type=float, metavar="0.5", help="share of parameters that stays")
    goal.add_argument("--size", metavar="0.5|200kB", help="share of the bytes that stays, or bytes")
    goal.add_argument("--sparsity", type=float, metavar="0.9", help="share of weights that becomes zero")
    parser.add_argument("--pattern", metavar="2:4", help="of zeros: any, 2:4, 4x1, kernel, row or column")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any option of prune_channels, or of prune_weights, as in recipes (repeatable)",
    )
    parser.add_argument(
        "--consume",
        action="store_true",
        help="channels: part by part in place, in little more memory than the model takes",
    )
    parser.add_argument("--checkpoints", type=Path, help="folder to go on from when it was killed")
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
        technique = technique_of(args)
        if args.consume and technique.name != "prune_channels":
            raise UsageError(
                "--consume is for channels", why="zeros change nothing's size", fix="leave it out"
            )
        pruned = prune(task, technique, consume=args.consume, checkpoints=args.checkpoints)
    pruned.save(folder)
    show(pruned.manifest.recipe, folder, pruned.facts, as_json=args.json)
    return 0


def technique_of(args: argparse.Namespace) -> Named:
    """Raises UsageError for a goal of channels together with a pattern of zeros."""
    from karui.recipe import Named, parse_option, parse_value

    found = {name: getattr(args, name) for name in (*GOALS, "pattern")}
    found["size"] = None if args.size is None else parse_value(args.size)
    given = [(name, value) for name, value in found.items() if value is not None]
    weights = any(name in OF_WEIGHTS for name, _ in given)
    if weights and (other := [name for name, _ in given if name not in OF_WEIGHTS]):
        fix = f"leave out --pattern, or --{other[0]}"
        raise UsageError(f"--pattern is of zeros, and --{other[0]} of channels", fix=fix)
    name = "prune_weights" if weights else "prune_channels"
    return Named(name, (*given, *(parse_option(text, "--option") for text in args.option)))


def show(recipe: str, folder: Path, facts: Any, *, as_json: bool) -> None:
    from karui.report.alone import text
    from karui.report.fields import storable

    if as_json:
        found = {"schema": "karui.prune/1", "recipe": recipe, "folder": str(folder), **facts}
        print(json.dumps(storable(found), ensure_ascii=False))
        return
    print(f"{recipe}\n{text(facts)}")
    print(f"folder: {folder}")
