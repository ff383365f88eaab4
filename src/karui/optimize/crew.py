"""Trials built ahead by the hands of an engine, while nothing that is timed is disturbed.

The run decides what is tried, in which order and with what outcome, as it would alone; here is only built
sooner what it is about to try. Hands on the machine that times work in waves: none of them has anything to do
while a trial is timed. Hands elsewhere go on meanwhile.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, final

from karui import journal, runtimes
from karui.errors import BuildFailed, KaruiError, UsageError, package_for
from karui.optimize.engines import Engine, Finished, Share, Work
from karui.optimize.engines.pool import Pool
from karui.optimize.job import Job
from karui.optimize.made import Made
from karui.optimize.workshop import is_timed, steps_key
from karui.process import Limits
from karui.recipe import Recipe

key_of = lru_cache(4096)(steps_key)  # asked for every recipe of a list, at every trial
LOSSES = 3  # hands that one recipe may take down
AHEAD = 4  # orders under way for each hand, so that none waits long for the last of a wave
BUILDERS = "builders beside this process need"
AT_ONCE = 2  # recipes that a search proposes for each hand

Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Help:
    """Who builds. jobs: processes of this machine, or the most of a cluster's; 0: none, or all it has room
    for. ray: address of the cluster.
    """

    jobs: int = 0
    ray: str = ""
    share: Share = Share()

    def __post_init__(self) -> None:
        for name, value in (("jobs", self.jobs), ("cpus of a trial", self.share.cpus)):
            if value < 0:
                raise UsageError(f"{name} is a number, not {value}", fix="0 for none, or as many as fit")
        if not (self.jobs or self.ray) and self.share != Share():
            raise UsageError("nothing has a share of the machine", fix="give --jobs N or --ray ADDRESS too")


@dataclass(frozen=True)
class Order:
    """Recipes with the same steps, which one hand takes once. losses: hands it has taken down."""

    recipes: tuple[Recipe, ...]
    losses: int = 0

    @property
    def key(self) -> str:
        return key_of(self.recipes[0])


@final
class Crew:
    """tell: hears what was built, by whom, and which hands were lost (events for the journal). say: hears, in
    words, what goes on.
    """

    def __init__(self, engine: Engine, tell: Tell, say: Callable[[str], None]) -> None:
        self.engine, self.tell, self.say = engine, tell, say
        self.at_once = AT_ONCE * engine.size
        self.waiting: list[Order] = []
        self.busy: dict[int, Order] = {}
        self.stock: dict[str, Made] = {}
        self.learned: dict[int, set[str]] = {}  # steps that a hand has taken
        self.reason = ""  # why the last hand was lost

    def made(self, recipe: Recipe, coming: Sequence[Recipe]) -> Made | None:
        """What was built of ``recipe``; None for what only the machine that times can build. coming: what
        will probably be asked for next.
        """
        name = str(recipe)
        if not self.engine.near or (name not in self.stock and can_go(recipe)):
            self.order([recipe, *coming])
        self.deal()
        while (can_go(recipe) and name not in self.stock) or self.disturbs:
            self.step()
        return self.stock.pop(name, None)

    @property
    def disturbs(self) -> bool:
        return self.engine.near and bool(self.busy or self.waiting or self.engine.coming)

    def order(self, recipes: Sequence[Recipe]) -> None:
        """Add to what is under way, up to AHEAD orders a hand; in a wave, those with the most steps first."""
        under_way = {str(r) for order in (*self.waiting, *self.busy.values()) for r in order.recipes}
        most = AHEAD * self.engine.size - len(self.waiting) - len(self.busy)
        groups: dict[str, list[Recipe]] = {}
        for recipe in dict.fromkeys(recipes):
            key = key_of(recipe) or str(recipe)
            fresh = can_go(recipe) and str(recipe) not in self.stock.keys() | under_way
            if fresh and (key in groups or len(groups) < most or recipe == recipes[0]):
                groups.setdefault(key, []).append(recipe)
        if groups:
            count = sum(map(len, groups.values()))
            self.say(
                f"building {count} recipe{'s' if count > 1 else ''} with {len(self.engine.hands)} builders"
            )
        self.waiting += [Order(tuple(group)) for group in groups.values()]
        if self.engine.near:
            self.waiting.sort(key=lambda order: -len(order.recipes[0].steps))

    def deal(self) -> None:
        """Give every idle hand an order, one whose steps it has taken before if there is one."""
        for hand in sorted(self.engine.hands - self.busy.keys()):
            if not self.waiting:
                return
            known = self.learned.setdefault(hand, set())
            order = next((order for order in self.waiting if order.key in known), self.waiting[0])
            self.waiting.remove(order)
            known.add(order.key)
            self.busy[hand] = order
            self.engine.start(hand, [str(recipe) for recipe in order.recipes])

    def step(self) -> None:
        """Wait until something is finished, and go on."""
        if not (self.busy or self.engine.coming):
            fix = "mend the cluster, then: karui resume"
            raise KaruiError("no builder is left", why=self.reason, fix=fix)
        finished = self.engine.finished()
        if finished is not None:
            self.settle(finished, self.busy.pop(finished.hand, None))
        self.deal()

    def settle(self, finished: Finished, order: Order | None) -> None:
        if finished.made is None:
            self.learned.pop(finished.hand, None)
            self.reason = finished.reason
            names = [str(recipe) for recipe in order.recipes] if order else []
            self.tell({"event": "lost", "recipes": names, "reason": finished.reason})
            for recipe in reversed(order.recipes if order else ()):
                self.again(Order((recipe,), (order.losses if order else 0) + 1), finished.reason)
            return
        for made in finished.made:
            self.tell({"event": "built", "recipe": made.recipe, "build_s": made.build_s, **made.facts})
            self.stock[made.recipe] = made

    def again(self, order: Order, reason: str) -> None:
        """Recipes of a lost hand are built one by one, so that the one that ends hands is found."""
        if order.losses < LOSSES:
            self.waiting.insert(0, order)
            return
        name = str(order.recipes[0])
        self.stock[name] = Made(name, error=BuildFailed(f"{LOSSES} builders were lost over it", why=reason))


@lru_cache(4096)
def can_go(recipe: Recipe) -> bool:
    """Whether a hand can build it: not where a step asks the clock, or a device is named."""
    named = runtimes.find(recipe.runtime.name).WHERE.intersection(dict(recipe.runtime.options))
    return not (named or is_timed(recipe))


@contextmanager
def hired(job: Job, limits: Limits, wanted: Help, say: Callable[[str], None]) -> Iterator[Crew | None]:
    """The crew that was asked for, None for none; on leaving, its processes are ended."""
    if not (wanted.jobs or wanted.ray):
        yield None
        return
    folder = job.folder / "hands"
    shutil.rmtree(folder, ignore_errors=True)
    with package_for(BUILDERS, "jobs"):
        sealer = importlib.import_module("karui.optimize.sealed")
    sealed = sealer.seal(job, limits)
    engine = engine_of(Work(sealed, folder, wanted.share), wanted, times_here=not job.target.on)
    try:
        yield Crew(engine, partial(journal.append, job.folder), say)
    finally:
        engine.close()
        shutil.rmtree(folder, ignore_errors=True)


def engine_of(work: Work, wanted: Help, *, times_here: bool) -> Engine:
    if not wanted.ray:
        return Pool(work, wanted.jobs)
    with package_for(BUILDERS, "ray"):
        module = importlib.import_module("karui.optimize.engines.ray")
    found: Engine = module.Ray(work, wanted.ray, wanted.jobs, times_here=times_here)
    return found
