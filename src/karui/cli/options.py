"""Options that several verbs share, and the values they become."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui import presets

if TYPE_CHECKING:
    from karui.budget import Budget
    from karui.optimize import Settings
    from karui.optimize.crew import Help
    from karui.target import Target

TASK_FORMS = (
    "file.py:name, pkg.mod:name (a Task, a module, or a function that makes one), .pt2, TorchScript, .onnx"
)


def declare_target(parser: argparse.ArgumentParser) -> None:
    where = ", ".join(presets.names())
    parser.add_argument("--target", default="cpu", help=f"where it will run: {where} (default: cpu)")
    parser.add_argument("--runtimes", default="", metavar="A,B", help="only these runtimes")
    parser.add_argument(
        "--recipe",
        action="append",
        default=[],
        metavar="TEXT",
        help="try this recipe instead of the preset, e.g. int8@onnxruntime (repeatable)",
    )
    parser.add_argument("--batch", type=int, default=1, help="rows a call when timed (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads for every runtime (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    declare_on(parser)


def declare_on(parser: argparse.ArgumentParser) -> None:
    where = "on that machine: ssh://[user@]host[:port][/path/to/karui], or 'pipe:COMMAND'"
    parser.add_argument("--on", default="", metavar="WHERE", help=where)


def declare_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="run folder (default: a new one under karui-runs)")
    parser.add_argument("--time", metavar="20m", help="stop trying new recipes when this is nearly used up")
    parser.add_argument("--stop-at", type=float, metavar="X", help="stop trying at a sure speed-up of X")
    parser.add_argument(
        "--pace",
        choices=("quick", "normal", "thorough"),
        default="normal",
        help="how long each measurement goes on",
    )
    parser.add_argument(
        "--timeout", default="10m", metavar="10m", help="give a build or a worker up after this"
    )
    declare_json(parser)


def declare_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print nothing but JSON on standard output")


def declare_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs",
        metavar="1x3x32x32",
        help="example inputs: shapes, comma-separated, with an optional dtype: 1x128:int64",
    )
    parser.add_argument("--train", metavar="SPEC", help="file.py:name of data to train on")
    parser.add_argument("--calibrate", metavar="SPEC", help="file.py:name of calibration data")
    parser.add_argument("--select", metavar="SPEC", help="file.py:name of validation data")
    parser.add_argument("--confirm", metavar="SPEC", help="file.py:name of data for the final number")
    parser.add_argument("--score", metavar="NAME", help="top1, top5, mse, agreement, or file.py:function")


def target_of(options: Mapping[str, Any]) -> Target:
    from karui.target import Target

    names = tuple(name for name in options["runtimes"].split(",") if name)
    return Target(options["target"], names, options["batch"], options["threads"], options.get("on") or "")


def budget_of(options: Mapping[str, Any]) -> Budget:
    from karui.budget import CONFIDENCE, Budget, parse_drop
    from karui.units import parse_bytes, parse_seconds

    drop, unit = parse_drop(options["max_drop"]) if options.get("max_drop") else (None, "points")
    latency, size, time = (options.get(key) for key in ("max_latency", "max_size", "time"))
    sure = options.get("confidence")
    return Budget(
        max_drop=drop,
        unit=unit,  # type: ignore[arg-type]
        max_latency_s=parse_seconds(latency) if latency else None,
        max_size_bytes=parse_bytes(size) if size else None,
        time_s=parse_seconds(time) if time else None,
        objective=options.get("objective") or "latency",
        confidence=CONFIDENCE if sure is None else sure,
    )


def settings_of(options: Mapping[str, Any], command: str) -> Settings:
    from karui.bench.rounds import Pace
    from karui.optimize import Settings
    from karui.process import Limits
    from karui.units import parse_seconds

    paces = {
        "quick": (Pace(least=10, most=40, seconds=2.0), Pace(least=20, most=80, seconds=6.0, openings=3)),
        "normal": (Pace(), Pace(least=25, most=200, seconds=25.0, openings=5, most_openings=10)),
        "thorough": (
            Pace(least=30, most=400, seconds=60.0),
            Pace(least=60, most=1000, seconds=180.0, openings=10, most_openings=20),
        ),
    }
    trial, final = paces[options["pace"]]
    said = {name: value for name, value in options.items() if value is not None}
    return Settings(
        recipes=tuple(options["recipe"]),
        stop_at=said.get("stop_at"),
        mixed=said.get("mixed", Settings.mixed),
        search=said.get("search", Settings.search),
        screen=said.get("screen", Settings.screen),
        help=help_of(said),
        pace=trial,
        final=final,
        limits=Limits(seconds=parse_seconds(options["timeout"])),
        seed=options["seed"],
        command=command,
    )


def help_of(options: Mapping[str, Any]) -> Help:
    from karui.optimize.crew import Help
    from karui.optimize.engines import Share
    from karui.units import parse_bytes

    memory = options.get("trial_memory")
    share = Share(options.get("trial_cpus", 0), parse_bytes(memory) if memory else 0)
    return Help(options.get("jobs", 0), options.get("ray", ""), share)


def example_inputs(text: str | None) -> Any:
    """Random example inputs from ``1x3x32x32`` or ``1x128:int64,1x128:int64``."""
    import torch

    from karui.errors import UsageError

    if not text:
        return None
    made = []
    for part in text.split(","):
        shape, _, dtype = part.strip().partition(":")
        try:
            sizes = [int(size) for size in shape.split("x")]
            kind = getattr(torch, dtype or "float32")
            made.append(torch.randn(sizes) if kind.is_floating_point else torch.zeros(sizes, dtype=kind))
        except (ValueError, AttributeError, RuntimeError) as error:
            raise UsageError(f"cannot read the shape {part!r}", fix="1x3x32x32 or 1x128:int64") from error
    return made[0] if len(made) == 1 else tuple(made)
