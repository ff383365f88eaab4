"""What can go wrong, as one tree; every message says what happened, why, and what to try.

KaruiError             exit code 1
├── UsageError         2  words, files or data we cannot work with
├── MissingRuntime     4  a needed runtime is not installed
├── Unsupported        1  this step or runtime cannot do that to this model
├── BuildFailed        1  a converter refused the model
├── MeasureFailed      1  the artifact would not run, hung, or gave unusable answers
├── Unreachable        1  the machine that shall run it does not answer
├── Tampered           2  an artifact's files are not what its manifest says
└── Interrupted      130  stopped by the user; the run can be resumed
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class KaruiError(Exception):
    """Base of every error raised on purpose: what happened, why, what to try."""

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        Exception.__init__(self, what)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  try: {self.fix}")
        return "\n".join(lines)

    @property
    def line(self) -> str:
        """The same on one line, for a table's cell."""
        return self.what + (f": {self.why}" if self.why else "")


class UsageError(KaruiError):
    """Words, files or data that cannot be worked with."""

    exit_code = 2


class MissingRuntime(KaruiError):
    """An optional package is not installed."""

    exit_code = 4


class Unsupported(KaruiError):
    """The step or runtime cannot do that to this model."""


class BuildFailed(KaruiError):
    """A converter refused the model."""


class MeasureFailed(KaruiError):
    """The artifact would not run, hung, ran out of memory or gave unusable answers."""


class Unreachable(KaruiError):
    """The machine that artifacts shall run on does not answer, or no longer."""


class Tampered(KaruiError):
    """An artifact's files differ from what its manifest says."""

    exit_code = 2


class Interrupted(KaruiError):
    """Stopped by the user; everything finished so far is kept."""

    exit_code = 130


@contextmanager
def foreign(kind: type[KaruiError], what: str, *, fix: str = "") -> Iterator[None]:
    """Turn whatever somebody else's code raises into one of our errors."""
    try:
        yield
    except KaruiError:
        raise
    except Exception as cause:
        raise kind(what, why=first_lines(cause), fix=fix) from cause


@contextmanager
def package_for(who: str, extra: str = "") -> Iterator[None]:
    """Around an import: what is missing becomes a MissingRuntime. who: "the runtime x needs"."""
    try:
        yield
    except ImportError as cause:
        raise MissingRuntime(
            f"{who} the package {cause.name!r}",
            why=str(cause),
            fix=f"pip install 'karui[{extra}]'" if extra else f"pip install {cause.name}",
        ) from cause


def first_lines(cause: BaseException, limit: int = 400) -> str:
    """The exception's type and the start of its message, on one line."""
    text = " ".join(str(cause).split())
    text = text if len(text) <= limit else text[:limit] + " …"
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
