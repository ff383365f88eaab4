"""Deciding on a trial, ranking the finalists, the Pareto set, and the verdict with its exit code."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trials import BASE, measured, trial

from karui.bench.rounds import Rounds
from karui.budget import Budget
from karui.measurement import Ratio
from karui.optimize.attempt import decide, plain_of, trial_id
from karui.optimize.conclude import Conclusion, dominates, pareto, point, ranked
from karui.optimize.result import best_effort, verdict
from karui.recipe import parse_recipe
from karui.search.enumerate import goal_met, untried

JOB = SimpleNamespace(budget=Budget(), origin=SimpleNamespace(baseline="fp32@torch_eager"))


def limited(**limits):
    return SimpleNamespace(budget=Budget(**limits), origin=JOB.origin)


@pytest.mark.parametrize(
    ("facts", "job", "status", "words"),
    [
        ({}, JOB, "kept", "within budget"),
        ({"checks_ok": False}, JOB, "failed", "verification: form at batch 1"),
        ({"verdict": "over"}, JOB, "rejected", "over the accuracy budget"),
        ({"verdict": "undecided"}, JOB, "rejected", "undecided against the budget"),
        (
            {"verdict": "baseline", "size": 9000},
            limited(max_size_bytes=1, max_latency_s=0.0),
            "kept",
            "baseline",
        ),
        ({"size": 1001}, limited(max_size_bytes=1000), "rejected", "larger than the size limit"),
        ({"size": 1000}, limited(max_size_bytes=1000), "kept", "within budget"),
        ({"latency_s": 0.2}, limited(max_latency_s=0.1), "rejected", "slower than the latency limit"),
        ({"speed": "slower", "size": 5000}, JOB, "rejected", "slower than the baseline and not smaller"),
        ({"speed": "slower", "size": 500}, JOB, "kept", "within budget"),
        ({"speed": "no measurable difference", "size": 5000}, JOB, "kept", "within budget"),
    ],
)
def test_decide(facts, job, status, words):
    found = decide(measured(**facts), job, [BASE])
    assert found[0] == status
    assert words in found[1]


def rounds_of(trials):
    return Rounds(
        {
            t.id: [[t.measurement.timing.samples_s[0] * (1 + 0.001 * (i % 3)) for i in range(30)]]
            for t in trials
        }
    )


def test_the_fastest_goes_first_and_a_tie_goes_to_the_simpler():
    int8 = trial("int8@onnxruntime", complexity=2, latency_s=1.000e-3, ratio=2.002)
    fp32 = trial("fp32@onnxruntime", complexity=0, latency_s=1.002e-3, ratio=1.998)
    slow = trial("fp32@openvino", complexity=0, latency_s=1.5e-3, ratio=1.33)
    order = ranked([slow, int8, fp32], rounds_of([slow, int8, fp32]), 0)
    assert [t.id for t in order] == ["onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32"]
    faster = trial("int8@onnxruntime", complexity=2, latency_s=0.8e-3, ratio=2.5)
    order = ranked([slow, faster, fp32], rounds_of([slow, faster, fp32]), 0)
    assert [t.id for t in order] == ["onnxruntime-int8", "onnxruntime-fp32", "openvino-fp32"]


points = st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(1, 5))


@given(st.lists(points, min_size=1, max_size=8))
def test_the_pareto_set_is_those_that_none_beats(made):
    trials = [
        trial(f"{'int8' if i else 'fp32'}@r{i}", latency_s=a * 1e-3, drop=b / 100, size=c * 100)
        for i, (a, b, c) in enumerate(made)
    ]
    kept = {t.id: point(t) for t in trials}
    chosen = set(pareto(trials))
    assert chosen
    for name, mine in kept.items():
        beaten = any(dominates(other, mine) for other in kept.values())
        assert (name in chosen) != beaten


def ended(trials, best=None, looks=()):
    return Conclusion(tuple(trials), best, None, tuple(looks))


OVER = trial("int8@onnxruntime", "rejected", drop=0.05, verdict="over")
WORSE = trial("int8@openvino", "rejected", drop=0.2, verdict="over", ratio=9.0)
UNSURE = trial("int8_dynamic@onnxruntime", "rejected", drop=0.004, verdict="undecided")
GOOD = trial("fp32@onnxruntime")


@pytest.mark.gate
@pytest.mark.parametrize(
    ("trials", "best", "looks", "code", "effort"),
    [
        ([BASE, GOOD], GOOD.id, [], 0, None),
        ([BASE, GOOD, UNSURE], GOOD.id, [], 0, None),
        ([BASE, OVER, WORSE], BASE.id, [], 3, OVER.id),
        ([BASE], BASE.id, [], 3, None),
        ([BASE, GOOD], BASE.id, [], 3, GOOD.id),
        ([BASE, UNSURE], BASE.id, [], 5, UNSURE.id),
        ([BASE, UNSURE, OVER], None, [], 5, UNSURE.id),
        ([BASE, GOOD], None, [{"trial": GOOD.id, "verdict": "undecided"}], 5, GOOD.id),
        ([BASE, GOOD], None, [{"trial": GOOD.id, "verdict": "over"}], 3, GOOD.id),
    ],
)
def test_verdict(trials, best, looks, code, effort):
    done = ended(trials, best, looks)
    found = verdict(JOB, done)
    assert found["exit_code"] == code
    assert best_effort(JOB, done) == effort
    assert ("the original is kept" in found["headline"]) == (code != 0)


def test_names_of_trials_are_readable_stable_and_different():
    texts = ["fp32@onnxruntime", "int8@onnxruntime", "int8[head=fp32]@onnxruntime"]
    texts += ["int8[tail=fp32]@onnxruntime", "fp32@torch_compile:mode=max-autotune"]
    texts += ["fold_norm + int8@onnxruntime"]
    names = [trial_id(parse_recipe(text)) for text in texts]
    assert names[:2] == ["onnxruntime-fp32", "onnxruntime-int8"]
    assert len(set(names)) == len(names)
    assert names == [trial_id(parse_recipe(text)) for text in texts]
    assert all(name.replace("-", "").replace("_", "").isalnum() for name in names)


def test_proposing_and_stopping():
    recipes = [parse_recipe(text) for text in ("fp32@torch_eager", "fp32@onnxruntime", "int8@onnxruntime")]
    assert untried(recipes, [])[0] is recipes[0]
    assert untried(recipes, [BASE, GOOD])[0] is recipes[2]
    assert untried(recipes, [BASE, GOOD, OVER]) == []
    assert goal_met([BASE, GOOD], BASE.id, None) is None
    assert goal_met([BASE, GOOD], BASE.id, 1.9) is GOOD
    assert goal_met([BASE, GOOD], BASE.id, 1.97) is None  # the interval reaches below
    assert goal_met([BASE, OVER], BASE.id, 1.0) is None
    assert isinstance(BASE.measurement.speedup, Ratio)


def test_fp32_that_others_are_compared_with_runs_on_the_same_device():
    told = {
        "int8@onnxruntime:calibration=entropy": "fp32@onnxruntime",
        "fp16@onnxruntime:pack_zeros=false,provider=cuda": "fp32@onnxruntime:provider=cuda",
        "fold_norm + bf16@torch_compile:mode=max-autotune,device=cuda": "fp32@torch_compile:device=cuda",
    }
    assert {text: str(plain_of(parse_recipe(text))) for text in told} == told
