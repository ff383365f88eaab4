"""``kill -9`` at random moments of a run, then ``karui resume``: the outcome must be the unbroken one's.

    python benchmarks/kill.py --kills 20 > benchmarks/results/kill.md

Every kill strikes a fresh run at a random moment of its life; then it is resumed to the end. Shown:
trials made twice (at most one), the kept set, the best, leftover locks and half-written artifacts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from karui import journal
from karui.artifact import load_artifact

RECIPES = ("fp32@torch_eager", "fp32@torchscript", "fp32@onnxruntime", "int8@onnxruntime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        start = time.monotonic()
        finish(call(home / "unbroken"))
        lasted = time.monotonic() - start
        print("# kill -9 at random moments, then resume\n")
        print(f"The unbroken run took {lasted:.0f} s. Best: {outcome(home / 'unbroken')[1]}.\n")
        print("| kill at | trials done | repeated | same kept set | same best | lock left | torn artifacts |")
        print("|---|---|---|---|---|---|---|")
        for i in range(args.kills):
            row(home / f"run{i}", rng.uniform(0.0, lasted), outcome(home / "unbroken"))


def call(folder: Path) -> subprocess.Popen:
    recipes = [word for recipe in RECIPES for word in ("--recipe", recipe)]
    command = [
        sys.executable,
        "-m",
        "karui",
        "optimize",
        "karui.demo:task",
        "--max-drop",
        "0.5",
        "--out",
        str(folder),
        "--pace",
        "quick",
        *recipes,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen) -> int:
    return process.wait(timeout=600)


def row(folder: Path, moment_s: float, wanted: tuple[set[str], str]) -> None:
    process = call(folder)
    time.sleep(moment_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = [e for e in journal.read(folder) if e.get("event") == "trial"] if folder.exists() else []
    if (folder / "run.json").exists():
        resumed = [sys.executable, "-m", "karui", "resume", str(folder)]
        subprocess.run(resumed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600, check=True)
    else:
        finish(call(folder))
    kept, best = outcome(folder)
    events = [e["trial"]["id"] for e in journal.read(folder) if e.get("event") == "trial"]
    print(
        f"| {moment_s:.1f} s | {len(before)} | {len(events) - len(set(events))} | {same(kept == wanted[0])} "
        f"| {same(best == wanted[1])} | {same((folder / 'lock').exists())} | {torn(folder)} |",
        flush=True,
    )


def outcome(folder: Path) -> tuple[set[str], str]:
    facts = json.loads((folder / "result.json").read_text())
    return {t["id"] for t in facts["trials"] if t["status"] == "kept"}, facts["best"]


def torn(folder: Path) -> int:
    """Artifact folders that are there but not whole; loading checks every hash."""
    found = 0
    for path in folder.glob("trials/*/artifact"):
        found += load_artifact(path) is None
    return found


def same(yes: bool) -> str:
    return "yes" if yes else "no"


if __name__ == "__main__":
    main()
