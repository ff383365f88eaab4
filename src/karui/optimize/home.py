"""The run folder: taken only when it is ours, held while we work, given up when nothing came of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from karui import journal
from karui.errors import KaruiError, UsageError, first_lines

WORDS = "run.json"
OURS = (WORDS, journal.JOURNAL, journal.LOCK)
LEAST_FREE_BYTES = 1 << 20


@contextmanager
def run_folder(folder: Path, words: Mapping[str, Any] | None) -> Iterator[None]:
    """Make and hold ``folder``. When the run fails before its first event, nothing is left behind.

    words: of the call, kept for ``karui resume``; those of a run that has begun are left alone.
    Raises UsageError when it holds something else, is in use, or cannot be written.
    """
    with writable(folder), nothing_left_behind(folder):
        check_ours(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with journal.locked(folder), emptied(folder), writable(folder):
            if words is not None and not journal.read(folder):
                keep(words, folder / WORDS)
            yield


def keep(words: Mapping[str, Any], path: Path) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(words, indent=2, ensure_ascii=False), encoding="utf-8")
    draft.replace(path)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """A full disk, a missing right or a file in the way is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"the run folder {folder} cannot be written",
            why=first_lines(error),
            fix=f"free some space or choose another --out; then: karui resume {folder}",
        ) from error


@contextmanager
def nothing_left_behind(folder: Path) -> Iterator[None]:
    """When it fails, an empty ``folder`` goes."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


@contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """When it fails before the first event, all that was written goes."""
    try:
        yield
    except KaruiError:
        if not journal.read(folder):
            shutil.rmtree(folder)
        raise


def check_ours(folder: Path) -> None:
    """Refuse a folder that holds somebody else's files: a run writes, and removes, files of its own there."""
    if not folder.exists():
        return
    names = os.listdir(folder)
    if names and not any(name in OURS for name in names):
        raise UsageError(
            f"{folder} is no run folder",
            why=f"it holds other files: {sorted(names)[0]}",
            fix="choose a new folder with --out",
        )


def check_room(folder: Path) -> None:
    """Raise OSError on a full disk: many libraries hide that reason behind words of their own."""
    if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
