"""One way of one tool on one task, in this process: python -m benchmarks.peers._one TASK TOOL WAY HOME.

Writes ``HOME/made.json``. It imports as little of ours as it can: other environments run it too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing OpenVINO reports otherwise


def main() -> None:
    task, tool, way, home = sys.argv[1:]
    made = Path(home) / "made.json"
    made.write_text(json.dumps(outcome(task, tool, way, Path(home))), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # some tools wait for a network at exit


def outcome(task: str, tool: str, way: str, home: Path) -> dict[str, Any]:
    from benchmarks.peers._given import given

    warnings.simplefilter("ignore")
    ready = given(task, home / "artifact")
    start, cpu = time.monotonic(), cpu_s()
    try:
        found = getattr(import_module(f"benchmarks.peers.{tool}"), way)(ready)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool that fails is a row that says so
        traceback.print_exc()
        return {"error": told(error), "seconds": round(time.monotonic() - start, 1)}
    spent = {"seconds": round(time.monotonic() - start, 1), "cpu_seconds": round(cpu_s() - cpu, 1)}
    if isinstance(found, str):
        return {"recipe": found, "made": {"": "artifact"}, "inputs": ready.names, **spent}
    return {"made": {word: os.path.relpath(path, home) for word, path in found.items()}, **spent}


def told(error: BaseException) -> str:
    """What the error ends with; its first line too, where it has several."""
    lines = [
        line.strip() for line in "".join(traceback.format_exception_only(error)).splitlines() if line.strip()
    ]
    return " ... ".join(line[:200] for line in dict.fromkeys([lines[0], lines[-1]]))


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
