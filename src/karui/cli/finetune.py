"""Train your model, or what pruning left of it, and nothing else: the original teaches, labels help.

For example:

    karui finetune task.py:task --step prune_channels:macs=0.5 --epochs 2
    karui finetune net.py:build --train data.py:batches --select data.py:held --option distill=0

Without training data it learns from the calibration data and the original's answers alone. Weights that are
zero stay zero. The new folder holds the weights: karui.load_pruned(folder, net) opens it. A run that was
killed goes on when it is called again with the same --checkpoints. Exit codes are listed by karui --help.
"""

from __future__ import annotations

import argparse

from karui.cli import training


def declare(parser: argparse.ArgumentParser) -> None:
    training.declare(parser, "finetune")
    parser.add_argument(
        "--step",
        action="append",
        default=[],
        metavar="TEXT",
        help="step before, e.g. prune_channels:macs=0.5 (repeatable)",
    )


def run(args: argparse.Namespace) -> int:
    from karui.recipe import parse_named

    return training.train(args, "finetune", [parse_named(text) for text in args.step])
