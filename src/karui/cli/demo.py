"""Run the main job on data shipped inside the package: a Fashion-MNIST subset; no network needed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from karui.cli.options import declare_json

# One of each kind; the whole grid of runtimes and precisions, and compiling, take longer than a demo should.
RECIPES = (
    "fp32@torch_eager",
    "fp32@onnxruntime",
    "fp32@openvino",
    "int8@onnxruntime",
    "int8@openvino",
    "bf16@openvino",
    "prune_channels:macs=0.75,multiple_of=8 + fp32@onnxruntime",
    "prune_channels:macs=0.75,multiple_of=8 + int8@onnxruntime",
)


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="run folder (default: a new one under karui-runs)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.api import new_folder
    from karui.cli.optimize import carry_out

    folder = args.out or new_folder(Path("karui-runs"))
    return carry_out(options_of(args.batch, args.threads), folder, "karui demo", as_json=args.json)


def options_of(batch: int, threads: int) -> dict[str, Any]:
    """What ``karui optimize`` would have been told; what the demo does not say is None."""
    from karui.cli.optimize import SAVED

    return dict.fromkeys(SAVED) | {
        "task": "karui.demo:task",
        "target": "cpu",
        "runtimes": "",
        "recipe": list(RECIPES),
        "batch": batch,
        "threads": threads,
        "seed": 0,
        "max_drop": "1",
        "mixed": 2,
        "pace": "quick",
        "timeout": "5m",
    }
