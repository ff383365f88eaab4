"""All architectures, each in a process of its own, as a table.

python -m benchmarks.families.sweep --rows /tmp/families > benchmarks/results/families.md
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm  # noqa: F401 - loaded once, before the processes part
import torch
from benchmarks.families.models import FAMILIES
from benchmarks.families.one import row_of
from torch import nn

from karui.graph.call import signature_of
from karui.graph.trace import trace
from karui.graph.units import find_units

BUILD_S = 10.0  # CPU seconds that a graph with its units may take
GIB = 2**30
HEAD = """| model | pixels | trace + units, CPU-s | cut, CPU-s | verdict | form | largest error \
| units removed | weights made smaller | MACs before | MACs after{peer} | what stays, mostly because |
|---|--:|--:|--:|---|---|--:|--:|--:|--:|--:|{line}---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=Path, required=True, help="folder of finished rows; delete one to redo it"
    )
    parser.add_argument("--only", nargs="*", default=[], help="words that names contain")
    parser.add_argument("--finished", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--seconds", type=int, default=300, help="of CPU, for each model")
    parser.add_argument("--memory", type=int, default=10, help="GiB, for each model")
    args = parser.parse_args()
    args.rows.mkdir(parents=True, exist_ok=True)
    warm_up()
    names = [name for name in FAMILIES if not args.only or any(word in name for word in args.only)]
    if args.finished:
        names = [name for name in names if file_of(args, name).exists()]
    found = {name: row(args, name, peer=False) for name in names}
    both = [name for name in names if name.startswith("torchvision")]
    if args.finished:
        both = [name for name in both if file_of(args, name, "_peer").exists()]
    peers = {name: row(args, name, peer=True) for name in both}
    report(found, peers)


def warm_up() -> None:
    """The export loads a hundred modules at its first use: no part of the time a graph takes."""
    torch.set_num_threads(1)
    model, images = nn.Conv2d(3, 2, 3).eval(), torch.zeros(2, 3, 8, 8)
    find_units(trace(model, *signature_of(model, images, 2)))


def row(args: argparse.Namespace, name: str, *, peer: bool) -> dict[str, Any]:
    """A finished row, or a new one; what the process did not live to say is a row too."""
    file = file_of(args, name, "_peer" if peer else "")
    if not file.exists():
        found = run(args, name, peer=peer)
        file.write_text(json.dumps(found))
        print(name, "peer" if peer else found, file=sys.stderr, flush=True)
    value: dict[str, Any] = json.loads(file.read_text())
    return value


def file_of(args: argparse.Namespace, name: str, peer: str = "") -> Path:
    path: Path = args.rows / f"{name.replace('/', '_')}{peer}.json"
    return path


def run(args: argparse.Namespace, name: str, *, peer: bool) -> dict[str, Any]:
    """A forked process has the libraries loaded already; the parent computes nothing."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=child, args=(args, name, peer, answers))
    process.start()
    process.join()
    if not answers.empty():
        value: dict[str, Any] = answers.get()
        return value
    return {"verdict": "hang" if process.exitcode == -signal.SIGXCPU else "CRASH"}


def child(args: argparse.Namespace, name: str, peer: bool, answers: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (args.seconds, args.seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (args.memory * GIB, args.memory * GIB))
    try:
        answers.put(row_of(name, peer=peer))
    except Exception as error:  # noqa: BLE001 - a crash is a row that says so
        answers.put({"verdict": "CRASH", "why": f"{type(error).__name__}: {error}"[:300]})


def report(found: dict[str, dict[str, Any]], peers: dict[str, dict[str, Any]]) -> None:
    print("# Real architectures, half of everything removed at random\n")
    print("Random weights. Cut model against the uncut one whose removed slices are zero, on fresh inputs;")
    print("exact: at most 1e-5 of the largest answer; exact64: at most 1e-9 in float64, where float32 is too")
    print("coarse for the network with random weights. Trace and units: CPU seconds of one thread.\n")
    for library, title in (("timm", "timm"), ("torchvision", "torchvision")):
        rows = {name: one for name, one in found.items() if name.startswith(library)}
        print(f"- **{title}**: {summary(list(rows.values()))}")
    for library in ("torchvision", "timm"):
        beside = library == "torchvision"
        print(f"\n## {library}\n")
        peer, line = (" | Torch-Pruning's", "--:|") if beside else ("", "")
        print(HEAD.format(peer=peer, line=line))
        for name, one in found.items():
            if name.startswith(library):
                print(line_of(name, one, peers.get(name) if beside else None))


def summary(rows: Sequence[dict[str, Any]]) -> str:
    count = {word: sum(one["verdict"] == word for one in rows) for word in VERDICTS}
    slow = [one for one in rows if built(one) > BUILD_S]
    words = ", ".join(
        f"{number} {word}" for word, number in count.items() if number or word in ("exact", "WRONG")
    )
    worst = max((built(one) for one in rows), default=0.0)
    limit = f"{len(slow)} took more than {BUILD_S:.0f} CPU-s to build (most {worst:.1f})"
    return f"{len(rows)} models: {words}; {limit}"


VERDICTS = ("exact", "exact64", "nothing", "refused", "hang", "CRASH", "dead", "WRONG")


def built(one: dict[str, Any]) -> float:
    return float(one.get("trace_s", 0.0)) + float(one.get("units_s", 0.0))


def line_of(name: str, one: dict[str, Any], peer: dict[str, Any] | None) -> str:
    cells = [name.partition("/")[2], str(FAMILIES[name].size), f"{built(one):.1f}"]
    if "form" in one:
        before, after = one["macs"]
        cells += [
            f"{one['cut_s']:.1f}", one["verdict"], one["form"], f"{one['error']:.0e}", f"{one['share']:.0%}",
            f"{one['smaller']} of {one['weights']}", million(before),
            f"{million(after)} ({after / before:.0%})",
        ]  # fmt: skip
    else:
        cells += ["", one["verdict"], *[""] * 6]
    if peer is not None:
        cells.append(against(one, peer))
    return f"| {' | '.join(cells)} | {reason(one)} |"


def million(count: float) -> str:
    return f"{count / 1e6:.1f} M"


def against(one: dict[str, Any], peer: dict[str, Any]) -> str:
    if "macs" not in peer:
        return peer["verdict"].lower()
    after = peer["macs"][1]
    return million(after) + (f" (ours {one['macs'][1] / after - 1:+.1%})" if "macs" in one else "")


def reason(one: dict[str, Any]) -> str:
    if "why" in one:
        return str(one["why"]).replace("|", "/")
    first = one.get("reasons") or []
    return f"{first[0][0]} ({first[0][1]})".replace("|", "/") if first else ""


if __name__ == "__main__":
    main()
