"""The measuring process: opens one artifact, answers rows, is timed. One JSON line a message.

It loads no torch unless the runtime needs it, holds the timing batch in memory, and times each call
by itself, so that percentiles are of calls and not of blocks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui import runtimes
from karui.artifact import Artifact, load_artifact
from karui.data import open_arrays, save_arrays
from karui.process import serve
from karui.recipe import parse_recipe

if TYPE_CHECKING:
    import numpy as np

    from karui.data import Arrays
    from karui.runtimes import Predict

KEPT_SAMPLES = 25  # timings sent back per block, evenly spaced
WARM_WINDOW, WARM_AGREE = 0.05, 0.05  # seconds per window; how close two windows must be


class Worker:
    """One open artifact and the batch it is timed on."""

    def __init__(self, folder: Path, data: Path, batch: int, threads: int) -> None:
        self.artifact: Artifact = load_artifact(folder)
        self.threads, self.data = threads, data
        rows = open_arrays(data / "timing")
        self.batch: Arrays = {name: array[:batch].copy() for name, array in rows.items()}
        self.predict: Predict | None = None

    def answer(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        verbs = {"load": self.load, "outputs": self.outputs, "warm": self.warm, "time": self.time}
        return verbs[message["do"]](message)

    def load(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Open the artifact and make the first call; both are reported apart."""
        start = time.perf_counter()
        runtime = runtimes.load(parse_recipe(self.artifact.recipe).runtime)
        self.predict = runtime.load(self.artifact.folder, self.artifact.signature, self.threads)
        opened = time.perf_counter()
        self.predict(self.batch)
        first_call_s = time.perf_counter() - opened
        standing = {"stands_in": runtime.stands_in(), "verified_as": runtime.verified_as()}
        return {"load_s": opened - start, "first_call_s": first_call_s, **standing}

    def outputs(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answers for the rows ``index`` of a folder of arrays, ``batch`` a call, written to ``out``."""
        import numpy as np

        stored, batch = open_arrays(Path(message["rows"])), int(message["batch"])
        index = np.asarray(message["index"])
        parts = [self.padded(stored, index[i : i + batch], batch) for i in range(0, len(index), batch)]
        names = [port.name for port in self.artifact.signature.outputs]
        save_arrays({name: joined(part) for name, part in zip(names, zip(*parts))}, Path(message["out"]))
        return {"rows": len(index)}

    def padded(self, stored: Arrays, rows: np.ndarray[Any, Any], batch: int) -> list[np.ndarray[Any, Any]]:
        """One call; a ragged last batch is filled up with its last row, so that shapes stay the same."""
        import numpy as np

        assert self.predict is not None
        full = np.pad(rows, (0, batch - len(rows)), mode="edge")
        outputs = self.predict({name: array[full] for name, array in stored.items()})
        return [np.array(output[: len(rows)]) for output in outputs]

    def warm(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call until two windows agree or the time is up; tells the seconds of one call."""
        until = time.perf_counter() + float(message["seconds"])
        previous, current = float("inf"), self.window()
        while abs(current - previous) > WARM_AGREE * current and time.perf_counter() < until:
            previous, current = current, self.window()
        return {"call_s": current, "steady": abs(current - previous) <= WARM_AGREE * current}

    def window(self) -> float:
        until = time.perf_counter() + WARM_WINDOW
        samples: list[float] = []
        while not samples or (time.perf_counter() < until and len(samples) < 1000):
            samples += self.timed(1)
        return sorted(samples)[len(samples) // 2]

    def time(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """One block: a call that is not counted, then ``calls`` that are."""
        self.timed(1)
        samples = self.timed(int(message["calls"]))
        step = max(1, len(samples) // KEPT_SAMPLES)
        return {"mean_s": sum(samples) / len(samples), "samples_s": samples[::step]}

    def timed(self, calls: int) -> list[float]:
        assert self.predict is not None
        if isinstance(self.predict, runtimes.Elsewhere):
            return self.predict.timed(self.batch, calls)
        predict, batch, clock = self.predict, self.batch, time.perf_counter
        samples: list[float] = []
        for _ in range(calls):
            start = clock()
            predict(batch)
            samples.append(clock() - start)
        return samples


def joined(parts: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.concatenate(parts)


if __name__ == "__main__":
    folder, data, batch, threads = sys.argv[1:]
    serve(Worker(Path(folder), Path(data), int(batch), int(threads)).answer)
