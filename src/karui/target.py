"""A Target: where the model will run, and how it is called there."""

from __future__ import annotations

from dataclasses import dataclass

from karui.errors import UsageError


@dataclass(frozen=True)
class Target:
    """``batch`` rows a call and ``threads`` per runtime; ``runtimes`` empty means all it knows.

    ``name`` picks the preset that lists the recipes to try (``karui.presets``). ``on``: the address of the
    machine where artifacts are run and timed, such as ``ssh://board``; empty for this one.
    """

    name: str = "cpu"
    runtimes: tuple[str, ...] = ()
    batch: int = 1
    threads: int = 1
    on: str = ""

    def __post_init__(self) -> None:
        for what, value in (("batch", self.batch), ("threads", self.threads)):
            if value < 1:
                raise UsageError(f"{what} must be at least 1, got {value}")
