"""Messages between two machines over a pipe: lines of JSON, some with the bytes of a file behind them.

Neither side waits for ever: each step of a transfer has to make progress. Whatever goes wrong is
``Unreachable``.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from karui.errors import Unreachable
from karui.units import Bytes, Seconds

PROTOCOL = 1
LINE_BYTES = 64 << 20  # a message; the longest one names the rows that are to be answered
STALL_S = 60.0  # a transfer that stands still for so long has ended
PIECE = 1 << 16
SURELY = select.PIPE_BUF  # as much as a pipe that can be written to takes at once


@final
class Wire:
    """Reads one file descriptor and writes another."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink, self.rest = source, sink, b""

    def say(self, message: Mapping[str, Any], files: tuple[Path, ...] = ()) -> None:
        """Send one message, and behind it the contents of files whose sizes it tells."""
        self.write(json.dumps(message).encode() + b"\n")
        for path in files:
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    self.write(piece)

    def hear(self, timeout_s: Seconds) -> dict[str, Any] | None:
        """The next message, or None when the other side has ended."""
        line = self.line(timeout_s)
        if line is None:
            return None
        try:
            message = json.loads(line)
        except ValueError as cause:
            raise Unreachable("the other side speaks no JSON", why=readable(line)) from cause
        if not isinstance(message, dict):
            raise Unreachable("the other side sends no messages", why=readable(line))
        return message

    def line(self, timeout_s: Seconds) -> bytes | None:
        """The next line without its end; what an end cuts off is dropped."""
        until = time.monotonic() + timeout_s
        searched = 0
        while (end := self.rest.find(b"\n", searched)) < 0:
            searched = len(self.rest)
            if searched > LINE_BYTES:
                raise Unreachable("the other side sends a message that is too long")
            piece = self.read(max(until - time.monotonic(), 0.0), timeout_s)
            if not piece:
                return None
            self.rest += piece
        line, self.rest = self.rest[:end], self.rest[end + 1 :]
        return line

    def take(self, count: Bytes) -> Iterator[bytes]:
        """The next ``count`` bytes, in pieces."""
        while count > 0:
            piece = self.rest or self.read(STALL_S, STALL_S)
            if not piece:
                raise Unreachable("the other side ended in the middle of a file")
            part, self.rest = piece[:count], piece[count:]
            count -= len(part)
            yield part

    def still_there(self) -> None:
        """Raise Unreachable when the other side has ended, or speaks before it was answered."""
        if self.rest or select.select([self.source], [], [], 0)[0]:
            raise Unreachable("the other side hung up")

    def read(self, left_s: Seconds, patience_s: Seconds) -> bytes:
        if not select.select([self.source], [], [], left_s)[0]:
            raise Unreachable(f"the other side gave no answer in {patience_s:.0f} s")
        return os.read(self.source, PIECE)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            if not select.select([], [self.sink], [], STALL_S)[1]:
                raise Unreachable(f"the other side took nothing for {STALL_S:.0f} s")
            try:
                left = left[os.write(self.sink, left[:SURELY]) :]
            except OSError as cause:
                raise Unreachable("the other side hung up") from cause


def readable(line: bytes) -> str:
    """The start of something unexpected, safe to print."""
    return line[:200].decode(errors="replace").encode("unicode_escape").decode()
