"""What a run tries next: its list, then what mends it, then what a search composes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import final

from karui.errors import package_for
from karui.measurement import Trial
from karui.optimize.admit import ask_of, refusal, refusal_of
from karui.optimize.job import Job
from karui.recipe import Recipe
from karui.search.enumerate import Aim, untried
from karui.search.harsher import pointless
from karui.search.mixed import propose_mixed
from karui.space import Point, Space


@final
class Plan:
    """recipes: the list. named: the user named them, so that none is left out. mixed, search: as in Settings.

    ``cut``: what was left out because it goes farther than what already lost too much.
    ``next`` is what is tried; ``coming`` what will be after it, as far as is known, to be built ahead.
    """

    def __init__(
        self, recipes: Sequence[Recipe], *, named: bool, mixed: int, composed: Composed | None
    ) -> None:
        self.recipes, self.named, self.mixed, self.composed = recipes, named, mixed, composed
        self.cut: list[dict[str, str]] = []

    @property
    def expected(self) -> int:
        """Trials, as far as is known."""
        return len(self.recipes) - len(self.cut) + (self.composed.most if self.composed else 0)

    def next(self, trials: Sequence[Trial]) -> Recipe | None:
        for recipe in self.listed(trials):
            if self.named or not (reason := pointless(recipe, trials)):
                return recipe
            self.cut.append(refusal(recipe, reason))
        if found := propose_mixed(trials, self.mixed):
            return found
        return self.composed.next(self.recipes, trials) if self.composed else None

    def coming(self, trials: Sequence[Trial]) -> list[Recipe]:
        """The next first; nothing beyond the list, or what a search has proposed."""
        if found := [r for r in self.listed(trials) if self.named or not pointless(r, trials)]:
            return found
        if propose_mixed(trials, self.mixed) or not self.composed:
            return []
        return self.composed.pending

    def listed(self, trials: Sequence[Trial]) -> list[Recipe]:
        """Of the list, what is neither tried nor left out."""
        cut = {entry["recipe"] for entry in self.cut}
        return [recipe for recipe in untried(self.recipes, trials) if str(recipe) not in cut]


@final
class Composed:
    """A search in ``space``, of the ``allowed`` points, of at most ``most`` trials, by a sampler.

    ``at_once``: how many are proposed at a time. ``pending``: what was proposed and has not been tried;
    ``tell`` hears it. Raises MissingRuntime without the package that samples.
    """

    def __init__(self, space: Space, allowed: Mapping[Point, Recipe], aim: Aim, most: int) -> None:
        with package_for("a search needs", "search"):
            self.sample = importlib.import_module("karui.search.sample")
        self.space, self.allowed, self.aim, self.most = space, allowed, aim, most
        self.at_once = 1
        self.tell: Callable[[list[str]], None] | None = None
        self.pending: list[Recipe] = []

    def next(self, listed: Sequence[Recipe], trials: Sequence[Trial]) -> Recipe | None:
        """listed: recipes that are tried anyway."""
        mine = set(map(str, self.allowed.values())) - set(map(str, listed))
        left = self.most - sum(trial.recipe in mine for trial in trials)
        tried = {trial.recipe for trial in trials}
        self.pending = [r for r in self.pending if str(r) not in tried and not pointless(r, trials)]
        if left > 0 and not self.pending:
            self.pending = self.proposed(trials, min(left, self.at_once))
            if self.tell and self.pending:
                self.tell([str(recipe) for recipe in self.pending])
        return self.pending[0] if left > 0 and self.pending else None

    def proposed(self, trials: Sequence[Trial], most: int) -> list[Recipe]:
        """The next recipes of the sampler, each as if those before it were being tried."""
        worth = {
            point: str(recipe) for point, recipe in self.allowed.items() if not pointless(recipe, trials)
        }
        points: list[Point] = []
        while len(points) < most:
            found = self.sample.propose(self.space, worth, trials, self.aim, points)
            if found is None:
                break
            points.append(found)
        return [self.allowed[point] for point in points]


def allowed_points(job: Job, space: Space) -> Mapping[Point, Recipe]:
    """Points of the space whose recipes no runtime refuses."""
    ask = ask_of(job)
    found = {point: space.recipe(point) for point in space.points()}
    return {point: recipe for point, recipe in found.items() if not refusal_of(recipe, ask)}
