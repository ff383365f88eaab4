"""Being told how a run goes: an interface, and the listener that says nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, final

from karui.measurement import Trial

if TYPE_CHECKING:
    from karui.graph.training.loop import Progress


class Watcher(ABC):
    """Hears of stages and trials; it must not raise."""

    @abstractmethod
    def stage(self, text: str) -> None:
        """A part of the run that is no trial begins."""

    @abstractmethod
    def trial(self, recipe: str, done: int, total: int) -> None:
        """A trial begins; ``done`` of ``total`` are finished."""

    @abstractmethod
    def training(self, progress: Progress) -> None:
        """A step of a training is done."""

    @abstractmethod
    def done(self, trial: Trial) -> None:
        """A trial is finished."""


@final
class Silent(Watcher):
    def stage(self, text: str) -> None:
        return

    def trial(self, recipe: str, done: int, total: int) -> None:
        return

    def training(self, progress: Progress) -> None:
        return

    def done(self, trial: Trial) -> None:
        return
