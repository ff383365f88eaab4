"""One agent at the other end of a pipe: greeted, asked, sent files, and ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from karui import host
from karui.artifact import sha256
from karui.errors import KaruiError, Unreachable, first_lines, foreign
from karui.process import SILENT, last_words, raise_told
from karui.units import Bytes, Seconds
from karui.wire import PROTOCOL, Wire, readable

GREETING_S = 30.0
REPLY_S = 120.0  # for what takes the agent no time; a slow line may have to empty first
SLOW_S = 600.0  # for loading every runtime, or hashing a large artifact
END_S = 2.0  # between hanging up and killing
CHATTER = 200  # lines that a login may print before the agent speaks
MOST_BYTES: Bytes = 8 << 30  # of one file that comes back
RESULT = re.compile(r"[0-9]{2,}\.[^/\\\x00]+\.npy")  # as ``save_arrays`` names them
FIX = "ssh to that machine by hand, and karui doctor there"


@final
class Connection:
    """Starts ``command``; raises Unreachable when no agent answers, UsageError when it is of another version.

    ``there`` is what the agent told of its machine.
    """

    def __init__(self, address: str, command: Sequence[str]) -> None:
        self.address, self.over, self.reason = address, False, ""
        self.log = Path(tempfile.mkdtemp(prefix="karui-on-")) / "agent.log"
        with self.log.open("wb") as stderr:
            self.process = self.started(command, stderr)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.wire = Wire(self.process.stdout.fileno(), self.process.stdin.fileno())
        try:
            self.there = self.greet()
        except BaseException:
            self.close()
            raise

    def started(self, command: Sequence[str], stderr: Any) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, start_new_session=True)
        except OSError as error:
            self.forget()
            raise Unreachable(f"{command[0]} cannot be started", why=first_lines(error)) from error

    def greet(self) -> dict[str, Any]:
        """Say hello; what a login prints first is passed over."""
        mine = host.versions().get("karui", "")
        with self.telling("no agent answers"):
            with contextlib.suppress(Unreachable):  # what it said instead of listening tells more
                self.wire.say({"do": "hello", "protocol": PROTOCOL, "karui": mine})
            self.pass_chatter(time.monotonic() + GREETING_S)
            there = self.reply(REPLY_S)
            if there.get("agent") != PROTOCOL:
                raise Unreachable("it is no agent of karui, or one of another version", why=str(there)[:200])
            return there

    def pass_chatter(self, until: Seconds) -> None:
        """Read up to the first line that could be a message, which is left to be read."""
        line: bytes | None = b""
        for _ in range(CHATTER):
            last, line = line, self.wire.line(max(until - time.monotonic(), 0.1))
            if line is None:
                raise Unreachable("it ended without a word" if not last else readable(last))
            if line.startswith(b'{"'):
                self.wire.rest = line + b"\n" + self.wire.rest
                return
        raise Unreachable("it says other things", why=readable(line or b""))

    def ask(
        self, message: Mapping[str, Any], *, timeout_s: Seconds = REPLY_S, files: tuple[Path, ...] = ()
    ) -> dict[str, Any]:
        """Send one message and wait for its answer; raises what the agent answers with, or Unreachable."""
        if self.over:
            raise Unreachable(f"{self.address}: the connection has ended", why=self.reason, fix=FIX)
        with self.telling("the connection has ended"):
            self.wire.say(message, files)
            return self.reply(timeout_s)

    def reply(self, timeout_s: Seconds) -> dict[str, Any]:
        answer = self.wire.hear(timeout_s)
        if answer is None:
            raise Unreachable("the other side hung up")
        if "log" not in answer:  # of a worker: whoever asked keeps it before the error is raised
            raise_told(answer)
        return answer

    def fetch(self, files: Sequence[Sequence[Any]], folder: Path) -> None:
        """Write the files that come behind an answer; see ``announced``."""
        folder.mkdir(parents=True, exist_ok=True)
        with self.telling("the connection has ended"):
            for name, size in map(announced, files):
                with (folder / name).open("wb") as file:
                    for piece in self.wire.take(size):
                        file.write(piece)

    def send(self, files: Mapping[str, Path]) -> None:
        """Send files (by their hashes) that are not there yet."""
        sizes = {digest: path.stat().st_size for digest, path in files.items()}
        missing = self.ask({"do": "missing", "files": [[digest, size] for digest, size in sizes.items()]})
        for digest in missing["missing"]:
            put = {"do": "put", "sha256": digest, "bytes": sizes[digest]}
            self.ask(put, files=(files[digest],))

    @contextlib.contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Whatever breaks a message off ends the connection, with what was last heard as the reason."""
        try:
            yield
        except Unreachable as error:
            self.end()
            said = last_words(self.log)
            self.reason = error.line if said == SILENT else f"{said} ({error.line})"
            raise Unreachable(f"{self.address}: {what}", why=self.reason, fix=FIX) from error
        except KaruiError:
            raise  # told by the agent: a whole answer
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Hang up; the agent ends by itself, and what started it is made to."""
        self.over = True
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        try:
            self.process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        if not self.over:
            self.end()
        self.forget()

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self.log.unlink(missing_ok=True)
            self.log.parent.rmdir()


def announced(entry: Any) -> tuple[str, Bytes]:
    """Name and size of a file that is to come; both are checked, not believed."""
    with foreign(Unreachable, "it sends a file with an odd name or size"):
        name, size = str(entry[0]), int(entry[1])
        if not RESULT.fullmatch(name) or not 0 <= size <= MOST_BYTES:
            raise Unreachable("it sends a file with an odd name or size", why=ascii(entry)[:100])
        return name, size


def hashed(folder: Path, known: dict[tuple[str, int, int], str], pattern: str = "*.npy") -> dict[str, str]:
    """Name -> SHA-256 of the files in a folder; ``known`` remembers those that do not change."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        seen = path.stat()
        key = (str(path), seen.st_size, seen.st_mtime_ns)
        known[key] = known.get(key) or sha256(path)
        found[path.name] = known[key]
    return found
