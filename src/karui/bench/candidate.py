"""One artifact under measurement, seen from the parent: a worker process and what it told."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.artifact import Artifact
from karui.data import open_arrays
from karui.errors import MeasureFailed
from karui.process import Child, Limits
from karui.units import Seconds

if TYPE_CHECKING:
    from karui.data import Array

BLOCK_S = 5e-3  # a block lasts at least this long
WARM_AT_MOST_S = 2.0


class Candidate:
    """Opens ``artifact`` in a worker; raises MeasureFailed when that process fails.

    ``data`` holds the arrays ``timing`` (the timing batch is its first rows). The log, and answers
    while they are read, go into the folder ``home``.
    """

    def __init__(
        self, artifact: Artifact, data: Path, home: Path, batch: int, threads: int, limits: Limits
    ) -> None:
        self.artifact, self.data, self.home, self.calls = artifact, data, home, 0
        self.log = home / "worker.log"
        arguments = [str(artifact.folder), str(data), str(batch), str(threads)]
        self.child = Child("karui.bench.worker", arguments, self.log, threads, limits)
        self.load_s: Seconds = 0.0
        self.first_call_s: Seconds = 0.0

    def load(self) -> None:
        """Open the artifact and make its first call (compiling, for a just-in-time runtime)."""
        answer = self.child.ask({"do": "load"})
        self.load_s, self.first_call_s = answer["load_s"], answer["first_call_s"]

    def outputs(self, rows: Path, batch: int, index: Sequence[int]) -> list[Array]:
        """Flat outputs on the rows ``index`` of a folder of arrays, ``batch`` rows a call."""
        import numpy as np

        out = self.home / "answers"
        shutil.rmtree(out, ignore_errors=True)
        message = {"do": "outputs", "rows": str(rows), "batch": batch, "index": list(index), "out": str(out)}
        self.child.ask(message)
        found = [np.array(array) for array in open_arrays(out).values()]
        shutil.rmtree(out)
        return found

    def warm(self) -> None:
        """Warm up and size a block; done once."""
        if not self.calls:
            call_s = self.child.ask({"do": "warm", "seconds": WARM_AT_MOST_S})["call_s"]
            self.calls = max(1, math.ceil(BLOCK_S / call_s))

    def time(self) -> dict[str, Any]:
        """One block: its median and some of its samples, in seconds per call."""
        if not self.calls:
            raise MeasureFailed("a candidate must be warm before it is timed")
        return self.child.ask({"do": "time", "calls": self.calls})

    @property
    def peak_memory_bytes(self) -> int:
        return self.child.memory_bytes("VmHWM")

    def close(self) -> None:
        self.child.close()
