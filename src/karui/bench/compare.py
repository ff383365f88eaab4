"""Finished artifacts side by side: no task, only time; the first is the baseline."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.artifact import Artifact, load_artifact
from karui.bench.candidate import Candidate, Opened
from karui.bench.machine import Conditions
from karui.bench.rounds import Pace, Rounds, session
from karui.bench.stats import percentiles
from karui.data import save_arrays
from karui.errors import UsageError

if TYPE_CHECKING:
    from karui.data import Arrays


def compare(
    folders: Sequence[Path], conditions: Conditions, pace: Pace, seed: int = 0
) -> list[dict[str, Any]]:
    """One row an artifact: latency, and the ratio to the first with its interval and verdict.

    All get the same random inputs, so they must take the same inputs.
    """
    artifacts = [load_artifact(folder) for folder in folders]
    if len({str(artifact.signature.inputs) for artifact in artifacts}) > 1:
        raise UsageError("these artifacts take different inputs", fix="compare artifacts of one model")
    with tempfile.TemporaryDirectory() as name, Opened() as opened:
        save_arrays(random_inputs(artifacts[0], conditions.batch, seed), Path(name) / "timing")

        def candidates() -> dict[str, Candidate]:
            return {
                str(i): Candidate(artifact, Path(name), Path(name) / str(i), conditions)
                for i, artifact in enumerate(artifacts)
            }

        pairs = [("0", str(i)) for i in range(1, len(artifacts))]
        rounds = session(lambda: opened.again(candidates()), pairs, pace, seed)
    for error in rounds.failed.values():
        raise error
    return [row(artifact, str(i), rounds, seed) for i, artifact in enumerate(artifacts)]


def row(artifact: Artifact, key: str, rounds: Rounds, seed: int) -> dict[str, Any]:
    found = rounds.ratio("0", key, seed)
    verdict = "baseline" if key == "0" else found.verdict
    return {
        "artifact": str(artifact.folder),
        "recipe": artifact.recipe,
        "size_bytes": artifact.size_bytes,
        "latency_s": percentiles(rounds.samples_s[key]),
        "speedup": {"ratio": found.ratio, "low": found.low, "high": found.high, "verdict": verdict},
        "rounds": sum(map(len, rounds.blocks_s[key])),
        "openings": len(rounds.blocks_s[key]),
    }


def random_inputs(artifact: Artifact, batch: int, seed: int) -> Arrays:
    """Normal floats, and zeros for integers (an index that is always valid)."""
    import numpy as np

    rng, made = np.random.default_rng(seed), {}
    for port in artifact.signature.inputs:
        shape = [batch if size is None else size for size in port.shape]
        is_float = np.dtype(port.dtype).kind == "f"
        made[port.name] = (rng.standard_normal(shape) if is_float else np.zeros(shape)).astype(port.dtype)
    return made
