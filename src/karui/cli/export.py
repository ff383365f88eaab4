"""Copy a finished artifact out of its run: a folder with its manifest, a zip, or the bare files."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from karui.cli.options import declare_json
from karui.errors import UsageError


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="run folder (its best is taken) or artifact folder")
    parser.add_argument("--to", type=Path, required=True, help="new folder, or a file ending in .zip")
    parser.add_argument("--bare", action="store_true", help="leave karui's manifest out")
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.artifact import MANIFEST, load_artifact, pack

    artifact = load_artifact(artifact_folder(args.source))
    if args.to.exists():
        raise UsageError(f"{args.to} is there already", fix="name a new folder or file")
    if args.to.suffix == ".zip" and args.bare:
        raise UsageError("a zip needs its manifest", fix="leave --bare out, or name a folder")
    if args.to.suffix == ".zip":
        pack(artifact, args.to)
    else:
        left_out = shutil.ignore_patterns(MANIFEST) if args.bare else None
        shutil.copytree(artifact.folder, args.to, ignore=left_out)
    print(json.dumps({"schema": "karui.export/1", "path": str(args.to)}) if args.json else args.to)
    return 0


def artifact_folder(source: Path) -> Path:
    if (source / "manifest.json").is_file():
        return source
    from karui.optimize.result import open_result

    best = open_result(source).best
    if best is None:
        raise UsageError(
            f"the run {source} chose nothing",
            why="nothing met its budget",
            fix="name the artifact folder of a trial",
        )
    return best.folder
