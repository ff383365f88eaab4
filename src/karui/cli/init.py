"""Write a task file to fill in: your model, your data, one call of karui optimize."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from karui.cli.options import declare_json
from karui.errors import UsageError

TEMPLATE = '''"""The job for karui: fill in the three functions, then run

    karui optimize {name}:task --max-drop 0.5
"""

import karui


def model():
    """The trained network, an nn.Module in float32."""
    from my_package import Net  # your own

    net = Net()
    # net.load_state_dict(torch.load("checkpoint.pt", weights_only=True))
    return net


def calibration():
    """A few hundred training samples: yields (inputs, targets) batches."""
    raise NotImplementedError


def validation():
    """Held-out samples: yields (inputs, targets) batches. karui divides them in two."""
    raise NotImplementedError


def task():
    return karui.Task(model=model, calibrate=calibration, select=validation, score="top1")
'''


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, default=Path("karui_task.py"))
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.file.exists():
        raise UsageError(f"{args.file} is there already", fix="name another file")
    args.file.write_text(TEMPLATE.format(name=args.file), encoding="utf-8")
    if args.json:
        print(json.dumps({"schema": "karui.init/1", "path": str(args.file)}))
        return 0
    print(f"{args.file}: fill it in, then: karui optimize {args.file}:task --max-drop 0.5")
    return 0
