"""The journal of a run: one JSON object a line, only ever appended; it is the truth.

A line that was cut by a kill is dropped on reading and cut off before the next append. A lock
beside it names its owner by process id and start time, so a stale one is recognised at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from karui.errors import UsageError

JOURNAL, LOCK = "journal.jsonl", "lock"
START = "name a run folder; karui optimize makes one"  # to try where a folder is no run


def append(folder: Path, event: Mapping[str, Any]) -> None:
    """Add one event and wait until it is on disk."""
    with (folder / JOURNAL).open("ab") as file:
        file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[dict[str, Any]]:
    """Every whole event, in order; a torn last line is left out."""
    return [event for _, event in whole_lines(folder / JOURNAL)]


def mend(folder: Path) -> None:
    """Cut a torn last line off, so that appending starts on a fresh line."""
    path = folder / JOURNAL
    if path.exists():
        end = sum(length for length, _ in whole_lines(path))
        if end < path.stat().st_size:
            os.truncate(path, end)


def whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                event = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                event = None
            if not isinstance(event, dict):
                return
            yield len(line), event


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder; a lock whose owner is gone is taken over."""
    path = folder / LOCK
    owner = owner_of(path)
    if owner and is_alive(owner):
        raise UsageError(
            f"{folder} is in use",
            why=f"process {owner['pid']} is working on it",
            fix="wait for it, or stop that process",
        )
    me = {"pid": os.getpid(), "started": start_time(os.getpid())}
    draft = path.with_name(f"{LOCK}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(me))
        os.replace(draft, path)
        yield
    finally:
        draft.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def owner_of(path: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else None


def is_alive(owner: Mapping[str, Any]) -> bool:
    started = start_time(owner["pid"])
    return started is not None and started == owner.get("started")


def start_time(pid: int) -> str | None:
    """When the kernel started ``pid`` (boot ticks), or None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return start_time_elsewhere(pid)
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def start_time_elsewhere(pid: int) -> str | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return "alive"
