"""Teach a smaller network what your model knows: a narrower copy of it, or a student of your own.

For example:

    karui distill task.py:task --width 0.5 --epochs 5
    karui distill task.py:task --student net.py:small --option loss=dist

Without training data it learns from the calibration data and the model's answers alone. The new folder holds
the weights: karui.load_pruned(folder, net) opens it, with the model or the student. A run that was killed
goes on when it is called again with the same --checkpoints. Exit codes are listed by karui --help.
"""

from __future__ import annotations

import argparse

from karui.cli import training


def declare(parser: argparse.ArgumentParser) -> None:
    training.declare(parser, "distill")
    student = parser.add_mutually_exclusive_group()
    student.add_argument(
        "--width", type=float, metavar="0.5", help="share of every layer's units in the copy"
    )
    student.add_argument("--student", metavar="SPEC", help="file.py:function that makes the student")


def run(args: argparse.Namespace) -> int:
    return training.train(args, "distill", [], ["width"])
