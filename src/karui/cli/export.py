"""Copy a finished artifact out of its run: a folder with its manifest, a zip, or the bare files."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from karui.cli.options import declare_json
from karui.errors import UsageError

if TYPE_CHECKING:
    from karui.artifact import Artifact
    from karui.browser.demo import Shown
    from karui.data import Arrays

BROWSER = Path("browser")  # exported there, an artifact gets its page
MADE_UP = 3  # random samples, where the page needs some and none of the data were asked for


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="run folder (its best is taken) or artifact folder")
    parser.add_argument(
        "--to", type=Path, required=True, help="new folder, or a file ending in .zip; browser means --page"
    )
    parser.add_argument("--bare", action="store_true", help="leave karui's manifest out")
    page = parser.add_argument_group("a page that runs it in a browser")
    page.add_argument("--page", action="store_true", help="write index.html and ONNX Runtime Web beside it")
    page.add_argument("--title", default="", help="what the page is called (default: the task's name)")
    page.add_argument(
        "--labels",
        metavar="A,B,C",
        help="names of the classes, or a file with one a line (default: the task's)",
    )
    page.add_argument("--mean", metavar="X,Y,Z", default="0", help="of pixels in 0..1 (default: 0)")
    page.add_argument("--std", metavar="X,Y,Z", default="1", help="of pixels in 0..1 (default: 1)")
    page.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="N",
        help="rows of the run's own data to show (default: none)",
    )
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    from karui.artifact import load_artifact, pack

    artifact = load_artifact(artifact_folder(args.source))
    paged = args.page or args.to == BROWSER
    if args.to.exists():
        raise UsageError(f"{args.to} is there already", fix="name a new folder or file")
    if args.to.suffix == ".zip" and (args.bare or paged):
        what = "a zip needs its manifest" if args.bare else "a page stands in a folder"
        raise UsageError(what, fix="name a folder" if paged else "leave --bare out, or name a folder")
    if args.to.suffix == ".zip":
        pack(artifact, args.to)
    elif paged:
        page(artifact, shown(args, artifact), args.to)
    else:
        copy(artifact, args.to, bare=args.bare)
    print(json.dumps({"schema": "karui.export/1", "path": str(args.to)}) if args.json else args.to)
    return 0


def copy(artifact: Artifact, folder: Path, *, bare: bool) -> None:
    from karui.artifact import MANIFEST

    shutil.copytree(artifact.folder, folder, ignore=shutil.ignore_patterns(MANIFEST) if bare else None)


def page(artifact: Artifact, what: Shown, folder: Path) -> None:
    """The files that the runtime reads, and the page: nothing of it is left behind when that fails."""
    from karui.browser.demo import write_page

    folder.mkdir(parents=True)
    try:
        write_page(artifact, what, folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    for name in artifact.needed:
        shutil.copyfile(artifact.folder / name, folder / name)


def shown(args: argparse.Namespace, artifact: Artifact) -> Shown:
    """What was told on the command line, else what the artifact's run knows."""
    from karui.bench.compare import random_inputs
    from karui.browser.demo import Shown

    run = next((folder for folder in (args.source, *artifact.folder.parents[:3]) if is_run(folder)), None)
    task = json.loads((run / "result.json").read_text(encoding="utf-8"))["task"] if run else {}
    rows = data_rows(run, args.samples) if args.samples else None
    made_up = random_inputs(artifact, MADE_UP * artifact.signature.batch, seed=0)
    return Shown(
        title=args.title or task.get("name") or artifact.recipe,
        labels=read_labels(args.labels) if args.labels else task.get("classes") or (),
        mean=numbers(args.mean, "--mean"),
        std=numbers(args.std, "--std"),
        samples=rows or made_up,
        random=rows is None,
    )


def is_run(folder: Path) -> bool:
    return (folder / "result.json").is_file()


def data_rows(run: Path | None, count: int) -> Arrays:
    from karui.data import open_arrays

    stored = open_arrays(run / "data" / "probe") if run else {}
    if not stored:
        raise UsageError("there are no samples", why="they are in the run's folder", fix="name the run")
    return {name: array[:count] for name, array in stored.items()}


def read_labels(text: str) -> list[str]:
    path = Path(text)
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")


def numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"cannot read {option} {text!r}", fix="numbers with commas: 0.485,0.456,0.406"
        ) from error


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
