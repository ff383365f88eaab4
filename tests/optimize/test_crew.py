"""Which hand builds what, and when: the run's own scheduling on a clock that is not the wall's."""

from __future__ import annotations

import json
import random

import pytest
from benchmarks.cluster import ROWS, Simulated, seconds_of, stand_in

from karui.errors import KaruiError, UsageError
from karui.optimize.crew import LOSSES, Crew, Help, can_go
from karui.optimize.engines import Engine, Finished, Share
from karui.optimize.plan import Composed
from karui.recipe import parse_recipe
from karui.search.enumerate import Aim
from karui.space import Axis, Space

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


def silent(_) -> None:
    return


def search_times(seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds to build and to time each recipe of a search in which every other one trains for long."""
    chance = random.Random(seed)
    build = {"fp32@torch_eager": 3.0, "fp32@onnxruntime": 4.0}
    for share in SHARES:
        steps = f"prune_channels:macs={share} + finetune:steps=600"
        build[f"{steps} + fp32@onnxruntime"] = chance.uniform(60, 120)
        build[f"{steps} + int8@onnxruntime"] = 8.0
    return build, dict.fromkeys(build, 2.0)


@pytest.mark.gate
@pytest.mark.parametrize("near", [False, True])
def test_so_they_do_with_the_recorded_times_of_a_search_that_trains(near):
    rows = json.loads(ROWS.read_text())["recorded"]["rows"]
    build, times = ({row["recipe"]: row[key] for row in rows} for key in ("build_s", "time_s"))
    outcomes = {text: stand_in(text) for text in build}
    one, two = (seconds_of(size, build, times, outcomes, near=near) for size in (1, 2))
    assert one / two >= 1.7


@pytest.mark.gate
@pytest.mark.parametrize("near", [False, True])
def test_two_builders_finish_a_build_bound_search_at_least_1_7_times_as_fast_as_one(near):
    for seed in range(5):
        build, times = search_times(seed)
        outcomes = {text: stand_in(text) for text in build}
        one, two = (seconds_of(size, build, times, outcomes, near=near) for size in (1, 2))
        assert one / two >= 1.7
        assert two >= (sum(build.values()) / 2 + (sum(times.values()) if near else 0)) * 0.999


def test_a_lost_hand_costs_time_and_no_trial():
    build, times = search_times(0)
    outcomes = {text: stand_in(text) for text in build}
    whole = seconds_of(3, build, times, outcomes, near=False)
    less = seconds_of(3, build, times, outcomes, near=False, lost=(whole / 3, 1))
    assert whole < less < seconds_of(1, build, times, outcomes, near=False)


class Fragile(Engine):
    """An engine whose hands die of one recipe, and come back."""

    def __init__(self, deadly: str) -> None:
        self.size, self.near, self.hands, self.coming = 2, True, {0, 1}, set()
        self.deadly, self.given, self.orders = deadly, {}, []
        self.inner = Simulated(2, dict.fromkeys(map(str, RECIPES), 1.0), near=True)

    def start(self, hand, recipes) -> None:
        self.given[hand] = recipes
        self.orders.append(list(recipes))
        self.inner.start(hand, recipes)

    def finished(self) -> Finished:
        found = self.inner.finished()
        dies = self.deadly in self.given[found.hand]
        return Finished(found.hand, None, "it was killed") if dies else found

    def close(self) -> None:
        return


STEPS = "prune_channels:macs=0.5 + "
RECIPES = [
    parse_recipe(text)
    for text in ("fp32@onnxruntime", f"{STEPS}fp32@onnxruntime", f"{STEPS}int8@onnxruntime", "int8@openvino")
]


def test_a_recipe_that_takes_hands_with_it_fails_alone():
    engine, told = Fragile(str(RECIPES[1])), []
    crew = Crew(engine, told.append, silent)
    made = {str(recipe): crew.made(recipe, RECIPES) for recipe in RECIPES}
    failed = {name: one.error for name, one in made.items() if one.error}
    assert list(failed) == [str(RECIPES[1])]
    assert failed[str(RECIPES[1])].line == f"{LOSSES} builders were lost over it: it was killed"
    assert engine.orders.count([str(RECIPES[1])]) == LOSSES - 1
    assert engine.orders[0] == [str(recipe) for recipe in RECIPES[1:3]]  # once together
    assert [len(event["recipes"]) for event in told if event["event"] == "lost"] == [2, 1, 1]


def test_when_every_hand_is_gone_the_run_ends_with_an_error():
    engine = Simulated(1, dict.fromkeys(map(str, RECIPES), 1.0), near=True, lost=(0.5, 0))
    with pytest.raises(KaruiError, match="no builder is left"):
        Crew(engine, silent, silent).made(RECIPES[0], RECIPES)


def test_what_asks_the_clock_or_names_a_device_is_built_where_it_is_timed():
    assert can_go(parse_recipe("prune_channels:macs=0.5 + fp32@onnxruntime"))
    assert not can_go(parse_recipe("prune_channels:latency=0.5 + fp32@onnxruntime"))
    assert not can_go(parse_recipe("fp32@onnxruntime:provider=cuda"))
    engine = Simulated(1, {}, near=True)
    assert Crew(engine, silent, silent).made(parse_recipe("fp32@torch_eager:device=cuda"), []) is None


def test_a_search_proposes_several_at_once_and_keeps_to_them():
    axis = Axis("channels", ("", *(f"prune_channels:macs={share}" for share in SHARES)), ordered=True)
    space = Space((axis,), ("fp32", "int8"), ("onnxruntime", "openvino"))
    allowed = {point: space.recipe(point) for point in space.points()}
    told: list[dict] = []
    search = Composed(space, allowed, Aim(0.01), 6)
    search.at_once, search.tell = 4, told.append
    trials = [stand_in("fp32@onnxruntime"), stand_in("fp32@openvino")]
    listed = [parse_recipe(trial.recipe) for trial in trials]
    while (recipe := search.next(listed, trials)) is not None:
        trials.append(stand_in(str(recipe)))
    assert [event["event"] for event in told] == ["proposed", "proposed"]
    some, others = (event["recipes"] for event in told)
    assert (len(some), len(others)) == (4, 2)
    assert [trial.recipe for trial in trials[2:]] == [*some, *others]
    assert len({trial.recipe for trial in trials}) == 8


def test_less_than_no_process_is_refused():
    with pytest.raises(UsageError, match="jobs is a number, not -2"):
        Help(jobs=-2)
    with pytest.raises(UsageError, match="cpus of a trial"):
        Help(jobs=1, share=Share(-1))
