"""Whose line it was: an error that the user's own code raised names that line."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from karui.errors import KaruiError, foreign


@contextmanager
def users_code(kind: type[KaruiError], what: str, *, fix: str = "") -> Iterator[None]:
    """``foreign`` for code that the user wrote: the reason begins with the file and line."""
    try:
        with foreign(kind, what, fix=fix):
            yield
    except KaruiError as error:
        line = own_line(error.__cause__)
        if line and line not in error.why:
            error.why = f"in {line}; {error.why}"
        raise


def own_line(cause: BaseException | None) -> str:
    """``net.py, line 11: if x.sum() > 0:``, the innermost line of the user's own, or nothing.

    A line of another installed package stands in when the user's code took no part.
    """
    frames = traceback.extract_tb(cause.__traceback__) if cause else []
    ours = [Path(__file__).parent, *package("torch")]
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    found = outside(frames, [*ours, *installed]) or outside(frames, ours)
    return f"{found[-1].filename}, line {found[-1].lineno}: {found[-1].line}" if found else ""


def package(name: str) -> list[Path]:
    file = getattr(sys.modules.get(name), "__file__", None)
    return [Path(file).parent] if file else []


def outside(frames: Sequence[traceback.FrameSummary], roots: Sequence[Path]) -> list[traceback.FrameSummary]:
    return [
        frame
        for frame in frames
        if not frame.filename.startswith("<")
        and not any(Path(frame.filename).is_relative_to(root) for root in roots)
    ]
