"""Rounds: every candidate once a round, in random order; a failing one is left out, and time is kept to."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karui import host
from karui.bench.rounds import Pace, interleave, session
from karui.errors import MeasureFailed

QUICK = Pace(least=6, most=12, seconds=60.0)


@dataclass
class Scripted:
    """A candidate that takes ``call_s`` a call, and fails at the block ``fails_at`` (0: when warmed)."""

    name: str
    call_s: float
    diary: list[str]
    fails_at: int | None = None
    noise: list[float] = field(default_factory=lambda: [1.0])
    blocks: int = 0
    threads: int = 1
    cpus: list[int] = field(default_factory=host.cpus)

    def pin(self, cpus):
        self.pinned = cpus

    def warm(self):
        if self.fails_at == 0:
            raise MeasureFailed(f"{self.name} would not warm")

    def time(self, block_s):
        self.blocks += 1
        if self.fails_at == self.blocks:
            raise MeasureFailed(f"{self.name} died")
        self.diary.append(self.name)
        taken = self.call_s * self.noise[self.blocks % len(self.noise)]
        return {"mean_s": taken, "median_s": taken, "samples_s": [taken, taken]}


def run(pace=QUICK, pairs=(("a", "b"),), seed=0, **candidates):
    diary = []
    made = {name: Scripted(name, diary=diary, **facts) for name, facts in candidates.items()}
    return interleave(made, pairs, pace, seed), diary


def test_the_samples_of_each_round_are_known():
    rounds, _ = run(a={"call_s": 0.01}, b={"call_s": 0.02, "noise": [1.0, 1.5]})
    assert [calls[0] for calls in rounds.calls_s("b")] == rounds.blocks_s["b"][0]
    rounds.add(run(a={"call_s": 0.03})[0])
    assert [calls[0] for calls in rounds.calls_s("a")] == [t for o in rounds.blocks_s["a"] for t in o]
    assert rounds.calls_s("nobody") == []


def test_every_round_times_each_once_in_changing_order():
    rounds, diary = run(a={"call_s": 0.01}, b={"call_s": 0.02}, c={"call_s": 0.03})
    parts = [tuple(diary[i : i + 3]) for i in range(0, len(diary), 3)]
    assert all(sorted(part) == ["a", "b", "c"] for part in parts)
    assert len(set(parts)) > 1
    assert {len(*blocks) for blocks in rounds.blocks_s.values()} == {len(parts)}
    assert all(len(rounds.samples_s[name]) == 2 * len(parts) for name in "abc")


def test_the_order_is_the_seeds():
    order = [run(seed=seed, a={"call_s": 0.01}, b={"call_s": 0.02})[1] for seed in (1, 1, 2)]
    assert order[0] == order[1] != order[2]


def test_a_settled_ratio_ends_it_early_and_a_noisy_one_does_not():
    calm, _ = run(Pace(least=6, most=40, seconds=60.0), a={"call_s": 0.01}, b={"call_s": 0.02})
    noisy, _ = run(
        Pace(least=6, most=40, seconds=60.0), a={"call_s": 0.01}, b={"call_s": 0.02, "noise": [1, 3, 0.2]}
    )
    assert len(*calm.blocks_s["a"]) == 10  # the first look after the least number of rounds
    assert len(*noisy.blocks_s["a"]) == 40


def test_time_is_kept_to_but_not_below_the_least_number():
    rounds, _ = run(
        Pace(least=8, most=100, seconds=0.0), a={"call_s": 0.01}, b={"call_s": 0.02, "noise": [1, 9]}
    )
    assert len(*rounds.blocks_s["a"]) == 8


@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_a_failing_candidate_is_left_out_and_the_others_go_on(fails_at):
    rounds, _ = run(
        pairs=(("a", "b"), ("a", "c")),
        a={"call_s": 0.01},
        b={"call_s": 0.02, "fails_at": fails_at},
        c={"call_s": 0.03},
    )
    assert list(rounds.failed) == ["b"]
    assert len(*rounds.blocks_s["b"]) == max(fails_at - 1, 0)
    assert len(*rounds.blocks_s["a"]) == len(*rounds.blocks_s["c"]) >= QUICK.least


@given(st.dictionaries(st.sampled_from("abcd"), st.none() | st.integers(0, 8), min_size=1))
def test_whatever_fails_it_ends_and_tells(plan):
    rounds, _ = run(
        pairs=[(name, other) for name in plan for other in plan if name != other],
        **{name: {"call_s": 0.01, "fails_at": moment} for name, moment in plan.items()},
    )
    survivors = {name: len(*rounds.blocks_s[name]) for name in plan if name not in rounds.failed}
    for name in rounds.failed:
        assert len(*rounds.blocks_s[name]) == max(plan[name] - 1, 0)
    assert all(plan[name] is None or plan[name] > blocks for name, blocks in survivors.items())
    assert len(set(survivors.values())) <= 1
    assert all(blocks >= QUICK.least for blocks in survivors.values())


@pytest.mark.skipif(len(host.cpus()) < 2, reason="one CPU only")
def test_an_opening_keeps_all_on_the_same_cpus_and_the_next_takes_others():
    made = {name: Scripted(name, 0.01, []) for name in "ab"}
    places = []
    for seed in (0, 1):
        interleave(made, [("a", "b")], QUICK, seed)
        assert made["a"].pinned == made["b"].pinned
        places.append(made["a"].pinned)
    assert len(places[0]) == 1
    assert places[0] != places[1]


def scripted_session(pace, shifts, fails=None):
    """A session whose k-th opening of "b" is off by the factor shifts[k]."""
    openings = []

    def open_all():
        number = len(openings)
        openings.append(number)
        both = {
            "a": Scripted("a", 0.01, [], noise=[1.0, 1.001]),
            "b": Scripted("b", 0.02 * shifts[number % len(shifts)], [], noise=[1.0, 1.001]),
        }
        refused = {"b": MeasureFailed("would not open")} if number == fails else {}
        return {name: one for name, one in both.items() if name not in refused}, refused

    return session(open_all, [("a", "b")], pace, seed=0), openings


def test_a_session_opens_as_often_as_asked_and_shares_the_rounds_out():
    pace = Pace(least=30, most=60, seconds=60.0, openings=3)
    rounds, openings = scripted_session(pace, [1.0])
    assert len(openings) == len(rounds.blocks_s["a"]) == len(rounds.blocks_s["b"]) == 3
    assert all(10 <= len(blocks) <= 20 for blocks in rounds.blocks_s["b"])


def test_openings_that_differ_widen_the_interval_and_call_for_more():
    pace = Pace(least=30, most=60, seconds=60.0, openings=3, most_openings=6)
    rounds, openings = scripted_session(pace, [1.0, 1.1, 0.9, 1.05])
    found = rounds.ratio("a", "b", seed=0)
    assert len(openings) == 6
    assert found.low < 0.5 / 1.04 < 0.5 < found.high
    assert found.high - found.low > 0.04


def test_time_that_is_up_calls_for_no_further_opening():
    _, openings = scripted_session(
        Pace(least=6, most=12, seconds=0.0, openings=2, most_openings=4), [1.0, 1.5]
    )
    assert len(openings) == 2


def test_one_that_will_not_open_again_is_left_out():
    pace = Pace(least=12, most=24, seconds=60.0, openings=3)
    rounds, openings = scripted_session(pace, [1.0], fails=1)
    assert len(openings) == 3
    assert list(rounds.failed) == ["b"]
    assert len(rounds.blocks_s["a"]) == 3
