"""Which of several recipes goes on after a look at each, and which never gets a trial."""

from __future__ import annotations

import dataclasses

import pytest

from karui.errors import UsageError
from karui.measurement import Measurement, Quality, Ratio, Timing, Trial, Verification
from karui.optimize import Settings
from karui.optimize.plan import WIDEST, Composed
from karui.recipe import parse_recipe
from karui.search import screen
from karui.search.enumerate import Aim
from karui.search.screen import Screened, choose, costly, farther, left, pays, trains
from karui.space import Axis, Space

AIM = Aim(0.01)
SPEEDS = {"0.75": 1.2, "0.5": 1.6, "0.25": 2.4, "0.03": 6.0}
DROPS = {"0.75": 0.0, "0.5": 0.02, "0.25": 0.12, "0.03": 0.7}  # as a look shows them
CUTS = Axis("channels", ("", *(f"prune_channels:macs={share}" for share in SPEEDS)), ordered=True)
SPACE = Space((CUTS, Axis("recovery", ("", "finetune:steps=600"))), ("fp32", "int8"), ("onnxruntime",))
FIRST = "fp32@onnxruntime"


def cut(share: str, precision: str = "fp32", recovery: str = "finetune:steps=600 + ") -> str:
    return f"prune_channels:macs={share} + {recovery}{precision}@onnxruntime"


def measured(speed=1.0, drop=0.0, *, wide=0.01, build_s=1.0, size=1000) -> Measurement:
    """wide: half of both intervals."""
    return Measurement(
        size,
        size,
        Verification("verified on runtime"),
        Quality(0.9 - drop, drop, drop - wide, drop + wide, "within" if drop <= AIM.drop else "over", 256),
        Timing((), (1 / speed,), 0.1, 0.1, 1000),
        Ratio(speed, speed * (1 - wide), speed * (1 + wide), "faster", "torch_eager-fp32"),
        build_s=build_s,
    )


def look(recipe: str, failure: str = "", **facts) -> Screened:
    return Screened(recipe, 0.1, measured(**facts), failure)


def whole(recipe: str, **facts) -> Trial:
    found = measured(**facts)
    status = "kept" if found.quality.verdict == "within" else "rejected"
    return Trial(recipe, recipe, "onnxruntime", "fp32", status, "", measurement=found)


FIELD = [look(cut(share), speed=SPEEDS[share], drop=DROPS[share]) for share in SPEEDS]


def test_the_fastest_of_those_that_may_hold_the_budget_goes_on():
    order, out = choose(FIELD, FIELD, [whole(FIRST)], AIM)
    assert order == [cut("0.5"), cut("0.75"), cut("0.25")]  # a third of 2 points fits, of 12 it does not
    assert list(out) == [cut("0.03")] and "loses far more than" in out[cut("0.03")]


def test_where_none_may_hold_it_the_one_that_lost_least_goes_on_and_nothing_is_out_for_that():
    bad = [look(cut("0.5"), drop=0.4), look(cut("0.25"), speed=2.0, drop=0.41)]
    assert choose(bad, bad, [whole(FIRST)], AIM) == ([cut("0.5"), cut("0.25")], {})


def test_far_off_is_told_from_siblings_and_from_what_a_whole_training_has_mended_before():
    alone = [look(cut("0.03"), drop=0.7, speed=6.0)]
    assert choose(alone, alone, [whole(FIRST)], AIM)[1] == {}
    mended = [look(cut("0.03", "int8"), drop=0.75)]
    trials = [whole(FIRST), whole(cut("0.03", "int8"), speed=6.0)]
    assert choose(FIELD, [*FIELD, *mended], trials, AIM)[1].keys() == {cut("0.75"), cut("0.5"), cut("0.25")}


def test_the_share_of_a_loss_that_stays_is_learned_from_recipes_that_had_both():
    assert left(FIELD, []) == screen.LEFT
    trials = [whole(cut("0.25"), drop=0.0), whole(cut("0.03"), drop=0.07)]
    assert left(FIELD, trials) == pytest.approx((screen.LEFT + 0 + 0.1) / 3)
    learned = [*FIELD, *(look(cut(s, "int8"), drop=0.2) for s in ("0.75", "0.5"))]
    mended = [whole(cut(s, "int8"), drop=0.0, speed=1.0) for s in ("0.75", "0.5")]
    assert choose(FIELD, learned, mended, Aim(0.015))[0][0] == cut(
        "0.25"
    )  # 12 points, of which a ninth stays


def test_slower_and_surely_more_lost_is_out_and_neither_alone_is():
    field = [look("a", speed=2.0, drop=0.0), look("b", speed=1.5, drop=0.05), look("c", speed=1.5, drop=0.01)]
    _, out = choose(field, field, [], AIM)
    assert out == {"b": "screened out: slower than a, and loses more"}
    sizes = [look("a", size=10), look("b", size=20, drop=0.05), look("c", size=20, drop=0.01)]
    assert choose(sizes, sizes, [], Aim(0.01, "size"))[1] == {
        "b": "screened out: larger than a, and loses more"
    }


def test_what_is_surely_slower_than_a_kept_trial_never_trains():
    order, out = choose(FIELD[:2], FIELD[:2], [whole(FIRST, speed=1.4)], AIM)
    assert order == [cut("0.5")]
    assert out == {cut("0.75"): f"screened out: slower than {FIRST}, which is kept"}
    assert choose(FIELD[:2], FIELD[:2], [whole(FIRST, speed=1.4, drop=0.5)], AIM)[1] == {}  # not kept


def test_what_fails_is_out_and_what_could_not_be_reached_comes_last():
    field = [look("a", "no kernel"), Screened("b", 0.1), look("c", drop=0.5)]
    order, out = choose(field, field, [], AIM)
    assert order == ["c", "b"] and out == {"a": "screened out: it failed: no kernel"}


def test_only_what_has_to_train_is_looked_at():
    ready = parse_recipe(cut("0.5", recovery=""))
    assert not trains(ready) and not costly(ready, [])
    assert costly(parse_recipe(cut("0.5")), [])
    assert not costly(parse_recipe(cut("0.5", "int8")), [whole(cut("0.5"))])  # it takes that training


def test_looks_end_when_they_take_as_long_as_what_they_save():
    for look_s, trial_s, expected in ((1.0, 10.0, True), (6.0, 10.0, True), (7.0, 10.0, False)):
        looks = [look(cut("0.5"), build_s=look_s)]
        trials = [whole(cut("0.75"), build_s=trial_s), whole(cut("0.75", "int8"), build_s=0.1)]
        assert pays(3, looks, trials) == expected
    assert pays(3, [], [whole(cut("0.5"), build_s=0.0)]) and pays(3, [look(cut("0.5"))], [])


def test_a_harsher_cut_than_one_that_was_far_off_is_not_looked_at():
    out = {cut("0.25"): f"screened out: {screen.FAR_OFF} {cut('0.75')}", cut("0.5"): "screened out: slower"}
    assert farther(parse_recipe(cut("0.03")), out) and not farther(parse_recipe(cut("0.75")), out)


class Search:
    """A search on recorded looks and trials, and what it told."""

    def __init__(self, width: int, most: int, at_once: int = 1) -> None:
        pytest.importorskip("optuna")
        self.allowed = {point: SPACE.recipe(point) for point in SPACE.points()}
        self.search = Composed(SPACE, self.allowed, AIM, most, width)
        self.search.at_once, self.events = at_once, []
        self.search.tell = self.events.append
        self.trials = [whole("fp32@torch_eager"), whole(FIRST)]

    def outcome(self, recipe: str, share_lost: float) -> dict:
        cuts = [share for share in SPEEDS if f"macs={share} " in recipe]
        lost = DROPS[cuts[0]] * (share_lost if "finetune" in recipe else 2.0) if cuts else 0.0
        return {"speed": SPEEDS[cuts[0]] if cuts else 0.9, "drop": lost}

    def step(self) -> bool:
        """One look or one trial; False at the end."""
        recipe = self.search.next([parse_recipe(FIRST)], self.trials)
        if recipe is not None:
            self.trials.append(whole(str(recipe), build_s=20.0, **self.outcome(str(recipe), 0.2)))
            self.events.append({"event": "trial", "recipe": str(recipe)})
        elif (recipe := self.search.to_screen) is not None:
            seen = dataclasses.asdict(look(str(recipe), **self.outcome(str(recipe), 1.0)))
            self.search.note({"event": "screened", "screened": seen})
        return recipe is not None

    def run(self) -> list[str]:
        while self.step():
            continue
        return [trial.recipe for trial in self.trials[2:]]

    def resumed(self, count: int) -> Search:
        """One that knows of this only its first events."""
        again = Search(self.search.screen, self.search.most, self.search.at_once)
        for event in self.events[:count]:
            again.search.hear(event)
            again.events.append(event)
            if event["event"] == "trial":
                again.trials.append(next(t for t in self.trials if t.recipe == event["recipe"]))
        return again


@pytest.mark.gate
def test_a_clearly_hopeless_recipe_never_gets_a_trial():
    plain, wise = Search(0, 6), Search(4, 6)
    assert any("0.03 + finetune" in recipe for recipe in plain.run())
    tried = wise.run()
    assert not any("0.03 + finetune" in recipe for recipe in tried)
    assert len(tried) == 6 and any("0.03" in event["screened"]["recipe"] for event in of(wise, "screened"))
    assert {entry["recipe"] for entry in wise.search.left_out(wise.trials)}.isdisjoint(tried)
    best = max(t.measurement.speedup.ratio for t in wise.trials if t.kept)
    assert best == max(t.measurement.speedup.ratio for t in plain.trials if t.kept) == SPEEDS["0.5"]


def of(search: Search, kind: str) -> list[dict]:
    return [event for event in search.events if event["event"] == kind]


@pytest.mark.parametrize(("at_once", "every"), [(1, 3), (4, 5)])
def test_a_search_that_is_broken_off_anywhere_goes_on_as_if_it_were_not(at_once, every):
    unbroken = Search(3, 4, at_once)
    unbroken.run()
    assert of(unbroken, "screened")
    for count in range(0, len(unbroken.events), every):
        again = unbroken.resumed(count)
        again.run()
        assert again.events == unbroken.events  # none looked at twice
    screened = [event["screened"]["recipe"] for event in of(unbroken, "screened")]
    assert len(screened) == len(set(screened))


def test_a_field_holds_as_many_as_may_go_on_times_the_width_and_no_more_than_can_be_waited_for():
    for at_once in (1, 6):
        one = Search(8, 6, at_once)
        while not of(one, "field") and one.step():
            continue
        (event,) = of(one, "field")
        assert event["places"] + len(event["beside"]) <= at_once
        assert event["places"] < len(event["recipes"]) <= min(8 * event["places"], WIDEST)


@pytest.mark.parametrize(("width", "said"), [(-1, "number of recipes, not -1"), (1, "cannot be screened")])
def test_a_width_that_cannot_be_is_refused(width, said):
    with pytest.raises(UsageError, match=said) as caught:
        Settings(screen=width)
    assert "0 for none" in caught.value.fix
