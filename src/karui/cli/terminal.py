"""What a run shows while it works: a progress line with time left, or plain lines."""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager, redirect_stdout
from typing import TYPE_CHECKING, Any, final

from rich.console import Console
from rich.status import Status

from karui.optimize.watch import Watcher
from karui.report.text import table
from karui.report.words import duration, ratio_words

if TYPE_CHECKING:
    from karui.graph.training.loop import Progress
    from karui.measurement import Trial
    from karui.optimize.result import Result


@final
class Terminal(Watcher):
    """Writes to standard error, so that standard output holds the result alone."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.status: Status | None = None
        self.start = self.told = time.monotonic()

    def stage(self, text: str) -> None:
        self.say(text)

    def trial(self, recipe: str, done: int, total: int) -> None:
        spent = time.monotonic() - self.start
        left = f", about {duration(spent / done * (total - done))} left" if done else ""
        self.say(f"[{done + 1}/{total}{left}] {recipe}")

    def training(self, progress: Progress) -> None:
        """A line now and then; the status of a terminal more often."""
        now, last = time.monotonic(), progress.step == progress.steps
        if now - self.told < (0.2 if self.console.is_terminal else 10.0) and not last:
            return
        self.told = now
        left = "" if last else f", about {duration(progress.left_s)} left"
        self.say(f"training: step {progress.step} of {progress.steps}, loss {progress.loss:.4g}{left}")

    def done(self, trial: Trial) -> None:
        found = trial.measurement
        speed = f" {ratio_words(found.speedup.ratio)}" if found and found.speedup else ""
        self.console.print(f"  {trial.recipe}: {trial.status}{speed}  {trial.reason}", markup=False)

    def say(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False)
            return
        if self.status is None:
            self.status = self.console.status("")
            self.status.start()
        self.status.update(text.replace("[", "\\["))

    def close(self) -> None:
        if self.status:
            self.status.stop()
            self.status = None


def prints_aside(as_json: bool) -> AbstractContextManager[Any]:
    """With JSON asked for, what the user's code and libraries print goes to standard error."""
    return redirect_stdout(sys.stderr if as_json else sys.stdout)


def show_result(result: Result, as_json: bool) -> int:
    """Print the outcome and return its exit code."""
    if as_json:
        sys.stdout.write(json.dumps(result.facts, ensure_ascii=False) + "\n")
        return result.exit_code
    show_table(result.facts)
    print(f"report: {result.folder / 'report.html'}")
    if result.facts["best"]:
        print(f"best:   {result.folder / 'trials' / result.facts['best'] / 'artifact'}")
    return result.exit_code


def show_table(facts: Any) -> None:
    console = Console()
    if console.is_terminal:
        console.print(table(facts))
        return
    from karui.report.text import plain

    print(plain(facts))
