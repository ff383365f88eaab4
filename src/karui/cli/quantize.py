"""Make your model INT8 and nothing else: one table of ranges, an artifact for each runtime, not timed.

For example:

    karui quantize task.py:task
    karui quantize net.py:build --calibrate data.py:images --runtime openvino --keep head
    karui quantize task.py:task --weights 4
    karui quantize large.py:task --weights 4 --shards weights/

Every artifact is verified in a process of its own, and scored. Validation data are not needed; without
them the agreement with the original is told. Exit codes are listed by karui --help.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

from karui.cli.options import TASK_FORMS, declare_data, declare_json, example_inputs


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help=TASK_FORMS)
    declare_data(parser)
    parser.add_argument(
        "--runtime",
        action="append",
        default=[],
        metavar="NAME",
        help="runtime, with options as in recipes: onnxruntime:calibration=mse (repeatable)",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--dynamic", action="store_true", help="ranges of activations found at run time")
    kind.add_argument(
        "--weights",
        type=int,
        choices=(8, 4),
        metavar="BITS",
        help="only weights, in 8 or 4 bits; arithmetic in float",
    )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="PATTERN", help="modules to keep in fp32 (repeatable)"
    )
    parser.add_argument(
        "--step", action="append", default=[], metavar="TEXT", help="step before, e.g. equalize (repeatable)"
    )
    parser.add_argument(
        "--shards",
        type=Path,
        metavar="FOLDER",
        help="read weights one by one from its .safetensors files; the script builds the model without",
    )
    parser.add_argument("--out", type=Path, help="new folder (default: a new one under karui-quantized)")
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.api import quantize
    from karui.cli.model import find_task
    from karui.cli.terminal import prints_aside
    from karui.graph.shards import blank
    from karui.report.fields import storable
    from karui.report.quantized import text

    with prints_aside(args.json):
        with blank() if args.shards else nullcontext():
            task = find_task(args.task, {**vars(args), "inputs": example_inputs(args.inputs)})
        found = quantize(task, recipes_of(args), args.out, args.shards)
    if args.json:
        print(json.dumps(storable({"schema": "karui.quantize/1", "made": found}), ensure_ascii=False))
    else:
        print(text(found))
    return 0


def recipes_of(args: argparse.Namespace) -> list[str]:
    rules = ",".join(f"{pattern}=fp32" for pattern in args.keep)
    plain = f"int{args.weights}_weights" if args.weights else "int8_dynamic" if args.dynamic else "int8"
    numerics = plain + (f"[{rules}]" if rules else "")
    runtimes = args.runtime or ["onnxruntime"]
    return [" + ".join([*args.step, f"{numerics}@{runtime}"]) for runtime in runtimes]
