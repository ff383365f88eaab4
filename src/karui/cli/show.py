"""Show a run's table, or what an artifact's manifest says."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from karui.cli.options import declare_json


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="run folder, artifact folder, or an exported zip")
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    if (args.folder / "manifest.json").is_file() or args.folder.suffix == ".zip":
        return show_artifact(args.folder, args.json)
    from karui.cli.terminal import show_table
    from karui.optimize.result import open_result

    result = open_result(args.folder)
    if args.json:
        print(result.to_json())
    else:
        show_table(result.facts)
    return 0


def show_artifact(path: Path, as_json: bool) -> int:
    from karui.artifact import open_artifact

    with tempfile.TemporaryDirectory() as scratch:
        artifact = open_artifact(path, Path(scratch))
        size_bytes = artifact.size_bytes
    facts = asdict(artifact) | {"folder": str(path), "size_bytes": size_bytes}
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    print(f"{artifact.recipe}: {size_bytes} bytes, files as recorded")
    for port in (*artifact.signature.inputs, *artifact.signature.outputs):
        shape = "x".join("batch" if size is None else str(size) for size in port.shape)
        print(f"  {port.name}: {port.dtype} {shape}")
    for key, value in artifact.executed.items():
        print(f"  {key}: {value}")
    return 0
