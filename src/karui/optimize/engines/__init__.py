"""Who builds while another process times: every engine is one file here, and the file's name is its name.

An engine has a number of hands, each a process that builds one order at a time. Which hand gets what, and
what becomes of an order whose hand was lost, is decided in ``karui.optimize.crew``, alike for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from karui.optimize.made import Made
from karui.units import Bytes


@dataclass(frozen=True)
class Share:
    """What one hand may use. cpus: 0 for an even share of this machine, or 1 of a cluster's.
    memory_bytes: 0 for no reservation.
    """

    cpus: int = 0
    memory_bytes: Bytes = 0


@dataclass(frozen=True)
class Work:
    """sealed: the job (``karui.optimize.sealed``). folder: for what hands need and make, on this machine."""

    sealed: bytes
    folder: Path
    share: Share


@dataclass(frozen=True)
class Finished:
    """What a hand made of its order; None where the hand was lost, with the reason."""

    hand: int
    made: Sequence[Made] | None
    reason: str = ""


class Engine(ABC):
    """size: hands at the start; it does not change. hands: those that can be given an order, or have one.
    coming: hands that are being started. near: whether a hand computes where artifacts are timed.
    """

    size: int
    near: bool
    hands: set[int]
    coming: set[int]

    @abstractmethod
    def start(self, hand: int, recipes: Sequence[str]) -> None:
        """Have ``hand``, which has nothing to do, build these."""

    @abstractmethod
    def finished(self) -> Finished | None:
        """Wait for the next that is finished or lost; None when another hand has come instead."""

    @abstractmethod
    def close(self) -> None:
        """End all hands."""
