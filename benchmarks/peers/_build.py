"""Every way of every tool on every task, each in a process of its own; a row for each, kept on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers._given import THREADS
from benchmarks.peers._registry import lines, packages, ways

LIMIT_S = 1200
ENVIRONMENTS = Path(".venv-peers")
QUIET = {  # nothing is reported, nothing is asked of a model hub
    "ORT_DISABLE_TELEMETRY": "1",
    "NNCF_CI": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "PRUNA_TELEMETRY_ENABLED": "False",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
ROW, LOG = "row.json", "log.txt"


def build(runs: Path, task: str, tool: str, limit_s: float = LIMIT_S, only: Sequence[str] = ()) -> None:
    """The ways of ``tool`` on ``task`` that have no row yet; ``only`` some where named."""
    wanted = [way for way in ways(tool) if not only or way in only]
    todo = [way for way in wanted if not (home_of(runs, task, tool, way) / ROW).is_file()]
    if not todo:
        return
    python, failed = environment(tool)
    for way in todo:
        home = home_of(runs, task, tool, way)
        keep(home, {"error": failed} if failed else run(home, [python, task, tool, way], limit_s), tool, way)
        print(f"{task} {tool} {way}: {read(home / ROW)}", file=sys.stderr, flush=True)


def home_of(runs: Path, task: str, tool: str, way: str) -> Path:
    return runs / task / tool / way


def keep(home: Path, found: dict[str, Any], tool: str, way: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    load = round(os.getloadavg()[0], 1)
    draft = home / "draft.json"
    draft.write_text(
        json.dumps(found | {"lines": lines(tool, way), "load": load}, indent=1), encoding="utf-8"
    )
    draft.rename(home / ROW)


def run(home: Path, words: Sequence[str], limit_s: float) -> dict[str, Any]:
    """What the process said of itself, or how it ended."""
    python, task, tool, way = words
    if tool != "karui":  # which goes on where it was
        shutil.rmtree(home, ignore_errors=True)
    (home / "artifact").mkdir(parents=True, exist_ok=True)
    (home / "made.json").unlink(missing_ok=True)
    start = time.monotonic()
    with (home / LOG).open("w") as log:
        child = subprocess.Popen(
            [python, "-m", "benchmarks.peers._one", task, tool, way, str(home)],
            env=surroundings(tool), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(child)
    spent = {"seconds": round(time.monotonic() - start, 1)}
    if code is None:
        return {"error": f"not done after {limit_s / 60:g} minutes"} | spent
    if (home / "made.json").is_file():
        return read(home / "made.json")
    return {"error": f"the process ended with {ending(code)}: {last_line(home / LOG)}"} | spent


def end(child: subprocess.Popen[bytes]) -> None:
    """The process and what it has started (compilers, workers)."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def last_line(log: Path) -> str:
    found = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return found[-1].strip()[:300] if found else "it said nothing"


def surroundings(tool: str) -> dict[str, str]:
    beside = [str(ENVIRONMENTS / tool)] if packages(tool, "BESIDE") else []
    paths = [str(Path("src").resolve()), str(Path.cwd()), *beside]
    return os.environ | QUIET | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(THREADS)}


def environment(tool: str) -> tuple[str, str]:
    """The Python that runs a tool, made when it is not there yet, and why that failed."""
    home = ENVIRONMENTS / tool
    beside, alone = packages(tool, "BESIDE"), packages(tool, "ALONE")
    python = str(home / "bin" / "python") if alone else sys.executable
    ready, made_of = home / "ready", "\n".join((*beside, *alone))
    if not made_of or (ready.is_file() and ready.read_text() == made_of):
        return python, ""
    shutil.rmtree(home, ignore_errors=True)
    ENVIRONMENTS.mkdir(exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(home), *beside]
    steps = [pip] if beside else [
        [sys.executable, "-m", "venv", str(home)],
        [python, "-m", "pip", "install", "--quiet", *alone],
    ]  # fmt: skip
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            return python, f"not installed: {said[-1].strip()[:300]}"
    ready.write_text(made_of)
    return python, ""


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
