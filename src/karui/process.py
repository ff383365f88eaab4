"""A child process that answers one JSON line with one JSON line.

The parent sleeps on the pipe. A child that crashes, hangs or eats too much memory becomes a
``MeasureFailed`` or ``BuildFailed`` with the reason in words; it never takes the parent with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from karui.errors import (
    BuildFailed,
    KaruiError,
    MeasureFailed,
    MissingRuntime,
    Tampered,
    Unsupported,
    UsageError,
    foreign,
)
from karui.units import Bytes, Seconds

LOOK_S = 1.0  # how often a waiting parent looks at the child's memory
SILENT = "it said nothing"
PR_SET_PDEATHSIG = 1
KINDS = {
    kind.__name__: kind
    for kind in (BuildFailed, MeasureFailed, MissingRuntime, Tampered, Unsupported, UsageError)
}


@dataclass(frozen=True)
class Limits:
    """When a child is given up: no answer in ``seconds``, or more resident memory than ``bytes``."""

    seconds: Seconds = 600.0
    bytes: Bytes = 0  # 0: four fifths of the machine's memory


class Child:
    """``python -m module args``, spoken to over its standard input and output.

    python: another interpreter, with what shall stand for ``-m module``.
    """

    def __init__(
        self,
        module: str,
        args: list[str],
        log: Path,
        threads: int,
        limits: Limits,
        python: Sequence[str] = (),
    ) -> None:
        self.name, self.log, self.limits = module.rpartition(".")[2], log, limits
        self.over = False
        self.memory_limit = limits.bytes or memory_bytes() * 4 // 5
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            self.heard = stderr.tell()
            self.process = subprocess.Popen(
                [*(python or (sys.executable, "-m", module)), *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(threads),
                start_new_session=True,
            )

    def ask(self, message: Mapping[str, Any], *, timeout_s: Seconds | None = None) -> dict[str, Any]:
        """Send one message and wait for its answer."""
        self.post(message)
        return self.answer(timeout_s=timeout_s)

    def post(self, message: Mapping[str, Any]) -> None:
        """Send one message; its answer is to be fetched before the next."""
        line = json.dumps(message).encode() + b"\n"
        assert self.process.stdin is not None
        if self.process.stdin.closed:
            raise self.ended()
        with contextlib.suppress(BrokenPipeError):  # a dead child is reported below, with its reason
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def answer(
        self, *, timeout_s: Seconds | None = None, look: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Wait for the answer to the message that was posted; ``look`` is called now and then meanwhile."""
        answer: dict[str, Any] = json.loads(self.wait(timeout_s or self.limits.seconds, look))
        raise_told(answer)
        self.heard = self.log.stat().st_size
        return answer

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout_s: Seconds, look: Callable[[], None] | None = None) -> bytes:
        assert self.process.stdout is not None
        until = time.monotonic() + timeout_s
        while not select.select([self.process.stdout], [], [], LOOK_S)[0]:
            if look:
                look()
            if time.monotonic() > until:
                raise self.given_up(f"gave no answer in {timeout_s:.0f} s", "raise the time limit")
            if self.memory_bytes() > self.memory_limit:
                raise self.over_limit()
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self.ended()
        return line

    def over_limit(self) -> MeasureFailed:
        limit = f"used more than {self.memory_limit / 1e9:.1f} GB of memory"
        return self.given_up(limit, "use a smaller batch, or a machine with more memory")

    def given_up(self, why: str, fix: str) -> MeasureFailed:
        self.kill()
        return MeasureFailed(f"the {self.name} {why} and was stopped", fix=f"{fix}; log: {self.log.name}")

    def ended(self) -> MeasureFailed:
        self.kill()
        code = self.process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = ", probably out of memory" if code == -signal.SIGKILL else ""
        return MeasureFailed(
            f"the {self.name} process ended with {how}{hint}",
            why=last_words(self.log, self.heard),
            fix=f"see {self.log.name}",
        )

    def memory_bytes(self, field: str = "VmRSS") -> Bytes:
        """Resident memory of the child and of what it started, or with ``VmHWM`` their peaks together; what
        they share counts for each. 0 where the system does not tell.
        """
        return sum(memory_of(pid, field) for pid in family(self.process.pid))

    def pin(self, cpus: Collection[int]) -> None:
        """Keep the child and what it started on these CPUs, all threads, where the system knows how."""
        for pid in family(self.process.pid):
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    os.sched_setaffinity(int(thread), cpus)

    def hang_up(self) -> None:
        """Ask the child to end; ``close`` makes sure of it."""
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def close(self) -> None:
        """Ask the child to end, then make sure it has."""
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)
        self.kill()

    def kill(self) -> None:
        """End the child and whatever it started (it leads a process group of its own); once."""
        if self.over:
            return
        self.over = True  # from here on its number may become another process's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def family(pid: int) -> list[int]:
    """A process and those that it and they have started; only itself where the system does not tell."""
    found = [pid]
    for parent in found:  # grows while it is walked, and each may end meanwhile
        with contextlib.suppress(OSError):
            for path in Path(f"/proc/{parent}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, path.read_text().split())
    return found


def memory_of(pid: int, field: str) -> Bytes:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def environment(threads: int) -> dict[str, str]:
    """Threads set alike for every library, no telemetry, quiet logs."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return (
        dict(os.environ)
        | dict.fromkeys(counts, str(threads))
        | {
            "NNCF_CI": "1",  # NNCF's documented switch for its telemetry
            "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime's, on Linux since 1.31
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
    )


def memory_bytes() -> Bytes:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def last_words(log: Path, start: int = 0) -> str:
    """The last line that says something, from byte ``start`` of a log."""
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else SILENT


def serve(answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """The child's side: answer lines until the input ends. Prints of libraries go to the log."""
    die_with_parent()
    with private_stdout() as out:
        for line in sys.stdin:
            try:
                with foreign(MeasureFailed, "it failed"):
                    reply = dict(answer(json.loads(line)))
            except KaruiError as error:
                reply = told(error)
            out.write(json.dumps(reply) + "\n")
            out.flush()


def told(error: KaruiError) -> dict[str, Any]:
    """An error as an answer."""
    kind = type(error).__name__
    return {"error": {"kind": kind, "what": error.what, "why": error.why, "fix": error.fix}}


def raise_told(answer: Mapping[str, Any]) -> None:
    """Raise the error that an answer tells, if it does."""
    if error := error_told(answer):
        raise error


def error_told(answer: Mapping[str, Any]) -> KaruiError | None:
    """The inverse of ``told``; None for an answer that tells no error."""
    if not (error := answer.get("error")):
        return None
    return KINDS.get(error["kind"], MeasureFailed)(error["what"], why=error["why"], fix=error["fix"])


@contextlib.contextmanager
def private_stdout() -> Iterator[TextIO]:
    """Keep the real standard output for answers; whatever others print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        yield out


def die_with_parent() -> None:
    """On Linux, end at once when the parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
