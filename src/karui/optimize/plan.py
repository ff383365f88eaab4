"""What a run tries next: its list, then what mends it, then what a search composes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from karui.errors import package_for
from karui.measurement import Trial
from karui.optimize.admit import ask_of, refusal, refusal_of
from karui.optimize.job import Job
from karui.optimize.screening import read_screened, shown
from karui.recipe import Recipe, parse_recipe
from karui.search.enumerate import Aim, untried
from karui.search.harsher import pointless
from karui.search.mixed import propose_mixed
from karui.search.screen import Screened, choose, costly, farther, pays
from karui.space import Point, Space

WIDEST = 12  # recipes of a field: looks are taken one by one, and builders wait meanwhile
WAITED = "screened, and others went on"


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
        self.cut: list[dict[str, Any]] = []

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

    @property
    def to_screen(self) -> Recipe | None:
        """What is to be looked at before there is a next one."""
        return self.composed.to_screen if self.composed else None

    def left_out(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        return self.cut + (self.composed.left_out(trials) if self.composed else [])

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

    screen: recipes that are looked at for one that is tried, where each would have to train; 0 for none.
    ``at_once``: how many are proposed at a time. ``pending``: what was proposed and has not been tried;
    ``field``: what is looked at before, of which ``places`` go on, with those ``beside`` that need no look.
    ``tell`` hears events for the journal, and ``hear`` them again. Raises MissingRuntime without the package
    that samples.
    """

    def __init__(
        self, space: Space, allowed: Mapping[Point, Recipe], aim: Aim, most: int, screen: int = 0
    ) -> None:
        with package_for("a search needs", "search"):
            self.sample = importlib.import_module("karui.search.sample")
        self.space, self.allowed, self.aim, self.most, self.screen = space, allowed, aim, most, screen
        self.at_once = 1
        self.tell: Callable[[Mapping[str, Any]], None] | None = None
        self.pending: list[Recipe] = []
        self.field: list[Recipe] = []
        self.beside: list[Recipe] = []
        self.places = 0
        self.known: dict[str, Screened] = {}
        self.out: dict[str, str] = {}  # why they are never tried

    def hear(self, event: Mapping[str, Any]) -> None:
        """Stand where a run stood that told this."""
        match event.get("event"):
            case "field":
                self.field, self.beside = recipes_of(event, "recipes"), recipes_of(event, "beside")
                self.places = event["places"]
            case "screened":
                one = read_screened(event["screened"])
                self.known[one.recipe] = one
            case "proposed":
                self.pending, self.field = recipes_of(event, "recipes"), []
                self.out |= event.get("out", {})

    def note(self, event: Mapping[str, Any]) -> None:
        if self.tell:
            self.tell(event)
        self.hear(event)

    def next(self, listed: Sequence[Recipe], trials: Sequence[Trial]) -> Recipe | None:
        """What to try; None where there is nothing, or something ``to_screen`` before. listed: recipes that
        are tried anyway.
        """
        mine = set(map(str, self.allowed.values())) - set(map(str, listed))
        places = min(self.most - sum(trial.recipe in mine for trial in trials), self.at_once)
        tried = {trial.recipe for trial in trials}
        self.pending = [r for r in self.pending if str(r) not in tried and not pointless(r, trials)]
        while places > 0 and not self.pending and not self.to_screen:
            if not (self.choose(trials) if self.field else self.propose(trials, places)):
                return None
        return self.pending[0] if places > 0 and self.pending else None

    @property
    def to_screen(self) -> Recipe | None:
        return next((recipe for recipe in self.field if str(recipe) not in self.known), None)

    def propose(self, trials: Sequence[Trial], places: int) -> bool:
        """Recipes to try, or a field of which some will be; False where there is no recipe left."""
        found = self.proposed(trials, places, [])
        dear = [recipe for recipe in found if self.screen and costly(recipe, trials)]
        wide = max(min(self.screen * len(dear), WIDEST), len(dear))
        known = list(self.known.values())
        looks = len(known) < self.screen * self.most and pays(self.screen, known, trials)
        field = self.proposed(trials, wide, dear, only=costly) if dear and looks else []
        if len(field) > len(dear):
            beside = [str(recipe) for recipe in found if recipe not in dear]
            names = [str(recipe) for recipe in field]
            self.note({"event": "field", "recipes": names, "beside": beside, "places": len(dear)})
        elif found:
            self.note({"event": "proposed", "recipes": [str(recipe) for recipe in found]})
        return bool(found)

    def proposed(
        self,
        trials: Sequence[Trial],
        most: int,
        found: Sequence[Recipe],
        only: Callable[[Recipe, Sequence[Trial]], bool] | None = None,
    ) -> list[Recipe]:
        """The next recipes of the sampler after ``found``, each as if those before it were being tried."""
        worth = {
            point: str(recipe)
            for point, recipe in self.allowed.items()
            if self.worth(recipe, trials) and (only is None or only(recipe, trials))
        }
        seen = {name for name, one in self.known.items() if one.look or one.failure}
        looks = {p: self.known[str(r)] for p, r in self.allowed.items() if str(r) in seen}
        points = [point for point, recipe in self.allowed.items() if recipe in found]
        while len(points) < most:
            point = self.sample.propose(self.space, worth, trials, self.aim, points, looks)
            if point is None:
                break
            points.append(point)
        return [self.allowed[point] for point in points]

    def worth(self, recipe: Recipe, trials: Sequence[Trial]) -> bool:
        return not (str(recipe) in self.out or pointless(recipe, trials) or farther(recipe, self.out))

    def choose(self, trials: Sequence[Trial]) -> bool:
        """Of the field those that go on; what is out is so for good, the rest may be proposed again."""
        field = [self.known[str(recipe)] for recipe in self.field]
        order, out = choose(field, list(self.known.values()), trials, self.aim)
        names = [*map(str, self.beside), *order[: self.places]]
        self.note({"event": "proposed", "recipes": names, "out": out})
        return True

    def left_out(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """What was looked at and never tried, with what was seen."""
        tried = {trial.recipe for trial in trials}
        return [
            refusal(parse_recipe(name), self.out.get(name, WAITED)) | {"screened": shown(one)}
            for name, one in self.known.items()
            if name not in tried
        ]


def recipes_of(event: Mapping[str, Any], key: str) -> list[Recipe]:
    return [parse_recipe(text) for text in event[key]]


def allowed_points(job: Job, space: Space) -> Mapping[Point, Recipe]:
    """Points of the space whose recipes no runtime refuses."""
    ask = ask_of(job)
    found = {point: space.recipe(point) for point in space.points()}
    return {point: recipe for point, recipe in found.items() if not refusal_of(recipe, ask)}
