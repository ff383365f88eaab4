"""What the verbs that train have in common: their options, a run, and what is told of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.cli.options import TASK_FORMS, declare_data, declare_json, example_inputs
from karui.errors import UsageError

if TYPE_CHECKING:
    from karui.recipe import Named

COUNTS = (("epochs", "passes over the training data"), ("steps", "batches to learn from"))


def declare(parser: argparse.ArgumentParser, technique: str) -> None:
    parser.add_argument("task", help=TASK_FORMS)
    declare_data(parser)
    parser.add_argument("--teacher", metavar="SPEC", help="file.py:name of another model to learn from")
    length = parser.add_mutually_exclusive_group()
    for name, meaning in COUNTS:
        length.add_argument(f"--{name}", type=int, metavar="N", help=meaning)
    parser.add_argument("--lr", type=float, metavar="0.001", help="learning rate")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"any option of {technique} as in recipes, e.g. precision=bf16-mixed (repeatable)",
    )
    parser.add_argument("--checkpoints", type=Path, help="folder to go on from when it was killed")
    parser.add_argument("--out", type=Path, help=f"new folder (default: a new one under karui-{technique})")
    declare_json(parser)


def train(args: argparse.Namespace, technique: str, before: Sequence[Named], more: Sequence[str] = ()) -> int:
    """Run the steps ``before`` and then the technique; more: options of it beside those declared here."""
    from karui.api import new_folder, trained
    from karui.cli.model import find_task
    from karui.cli.terminal import Terminal, prints_aside

    folder = args.out or new_folder(Path(f"karui-{technique}"))
    if folder.exists():
        raise UsageError(f"{folder} is there already", fix="name a new folder")
    terminal = Terminal()
    try:
        with prints_aside(args.json):
            task = find_task(args.task, {**vars(args), "inputs": example_inputs(args.inputs)})
            steps = [*before, technique_of(args, technique, more)]
            found = trained(task, steps, args.checkpoints, terminal.training)
    finally:
        terminal.close()
    if not helps():
        found.save(folder)
        show(technique, found.manifest.recipe, folder, found.facts, as_json=args.json)
    return 0


def technique_of(args: argparse.Namespace, technique: str, more: Sequence[str]) -> Named:
    from karui.recipe import Named, parse_option

    names = [*(name for name, _ in COUNTS), "lr", *more]
    given = [(name, getattr(args, name)) for name in names if getattr(args, name) is not None]
    return Named(technique, (*given, *(parse_option(text, "--option") for text in args.option)))


def helps() -> bool:
    """Whether this is one of the further processes of a training, whose result the first one keeps."""
    import torch.distributed

    return torch.distributed.is_initialized() and torch.distributed.get_rank() > 0


def show(technique: str, recipe: str, folder: Path, facts: Mapping[str, Any], *, as_json: bool) -> None:
    from karui.report.alone import text
    from karui.report.fields import storable

    if as_json:
        found = {"schema": f"karui.{technique}/1", "recipe": recipe, "folder": str(folder), **facts}
        print(json.dumps(storable(found), ensure_ascii=False))
        return
    print(f"{recipe}\n{text(facts)}")
    print(f"folder: {folder}")
