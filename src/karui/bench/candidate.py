"""One artifact under measurement, seen from the parent: a worker process and what it told."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from karui.artifact import Artifact
from karui.bench.machine import Conditions
from karui.data import open_arrays
from karui.errors import KaruiError, MeasureFailed
from karui.units import Seconds

if TYPE_CHECKING:
    from karui.data import Array

WARM_AT_MOST_S = 2.0


class Candidate:
    """Opens ``artifact`` in a worker; raises MeasureFailed, or Unreachable, when that process fails.

    ``data`` holds the arrays ``timing`` (the timing batch is its first rows). The log, and answers
    while they are read, go into the folder ``home``.
    """

    def __init__(self, artifact: Artifact, data: Path, home: Path, conditions: Conditions) -> None:
        self.artifact, self.data, self.home, self.conditions = artifact, data, home, conditions
        self.child = conditions.machine.start(artifact, data, home / "worker.log", conditions)
        self.call_s: Seconds = 0.0
        self.load_s: Seconds = 0.0
        self.first_call_s: Seconds = 0.0
        self.stands_in = ""  # why the worker asks a reference interpreter instead of the runtime
        self.verified_as = ""  # the status that passed checks give it

    def load(self) -> None:
        """Open the artifact and make its first call (compiling, for a just-in-time runtime)."""
        self.begin_load()
        self.end_load()

    def begin_load(self) -> None:
        """Have it load while others do; ``end_load`` waits for it."""
        self.child.post({"do": "load"})

    def end_load(self) -> None:
        answer = self.child.answer()
        self.load_s, self.first_call_s = answer["load_s"], answer["first_call_s"]
        self.stands_in, self.verified_as = answer["stands_in"], answer["verified_as"]

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

    @property
    def threads(self) -> int:
        return self.conditions.threads

    @property
    def cpus(self) -> list[int]:
        """Those of its machine that may be used; empty where the system does not tell."""
        return self.conditions.machine.cpus()

    def check_files(self) -> None:
        """Raises Tampered when running has changed the artifact."""
        self.conditions.machine.check(self.artifact)

    def pin(self, cpus: Collection[int]) -> None:
        """Stay on these CPUs from now on."""
        self.child.pin(cpus)

    def warm(self) -> None:
        """Warm up, and learn how long a call takes; done once. A reference interpreter is never timed."""
        if self.stands_in:
            raise MeasureFailed("it is not measured on this host", why=self.stands_in)
        if not self.call_s:
            self.call_s = self.child.ask({"do": "warm", "seconds": WARM_AT_MOST_S})["call_s"]

    def time(self, block_s: Seconds) -> dict[str, Any]:
        """One block of at least ``block_s``: its mean and some of its samples, in seconds per call."""
        if not self.call_s:
            raise MeasureFailed("a candidate must be warm before it is timed")
        return self.child.ask({"do": "time", "calls": max(1, math.ceil(block_s / self.call_s))})

    @property
    def peak_memory_bytes(self) -> int:
        return self.child.memory_bytes("VmHWM")

    def close(self) -> None:
        self.child.close()


class Opened:
    """The candidates that are open now; a context manager that ends them all on leaving."""

    def __init__(self) -> None:
        self.now: dict[str, Candidate] = {}

    def __enter__(self) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def again(self, fresh: Mapping[str, Candidate]) -> tuple[dict[str, Candidate], dict[str, KaruiError]]:
        """``fresh`` in place of those open so far: the ones that loaded, and why others did not."""
        self.close()
        return self.add(fresh)

    def add(self, fresh: Mapping[str, Candidate]) -> tuple[dict[str, Candidate], dict[str, KaruiError]]:
        """All load at the same time."""
        self.now |= fresh
        failed: dict[str, KaruiError] = {}
        for name, candidate in fresh.items():
            try:
                candidate.begin_load()
            except KaruiError as error:
                failed[name] = error
        for name, candidate in fresh.items():
            try:
                candidate.end_load()
            except KaruiError as error:
                failed.setdefault(name, error)
                self.now.pop(name).close()
        return {name: one for name, one in fresh.items() if name not in failed}, failed

    def close(self) -> None:
        for candidate in self.now.values():  # all end at the same time; then each is waited for
            candidate.child.hang_up()
        for candidate in self.now.values():
            candidate.close()
        self.now = {}
