"""One opening after the other of an artifact beside what it is timed against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karui.artifact import Artifact, load_artifact
from karui.bench.candidate import Opened
from karui.bench.gate import quiet_ratio
from karui.bench.rounds import Pace, interleave
from karui.errors import UsageError
from karui.optimize.scene import Scene

PACE = Pace(least=12, most=40, seconds=1.0, half_width=0.01)  # of one opening
MINE = "artifact"


def yardsticks(home: Path, result: Mapping[str, Any], trial: Mapping[str, Any]) -> dict[str, Artifact]:
    """What a run has to time ``trial`` against: FP32 in its runtime, and the original; each once."""
    timed = {row["id"] for row in result["trials"] if row["latency_s"]}
    wanted = {"same_runtime": f"{trial['runtime']}-fp32", "original": result["baseline"]}
    found: dict[str, Artifact] = {}
    for against, name in wanted.items():
        folder = home / "trials" / name / "artifact"
        if name in timed and name != trial["id"] and folder not in [one.folder for one in found.values()]:
            found[against] = load_artifact(folder)
    return found


def open_once(
    scene: Scene, opened: Opened, artifact: Artifact, against: Mapping[str, Artifact], number: int
) -> dict[str, float]:
    """``quiet_ratio`` to each of ``against``, in fresh processes; the CPU turns with ``number``."""
    wanted = {**against, MINE: artifact}
    fresh = {name: scene.candidate(one, name) for name, one in wanted.items()}
    candidates, failed = opened.again(fresh)
    rounds = interleave(candidates, [(name, MINE) for name in against], PACE, number)
    for name, error in (failed | rounds.failed).items():
        if name == MINE:
            raise error
        raise UsageError(f"{wanted[name].recipe}, to time against, does not run", why=error.line)
    return {name: quiet_ratio(rounds.calls_s(name), rounds.calls_s(MINE)) for name in against}
