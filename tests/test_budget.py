"""The judge: calibrated, monotone, honest about what it cannot know."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.budget_calibration import cases, over, size_of_test
from hypothesis import given, settings
from hypothesis import strategies as st

from karui.budget import (
    Budget,
    default_drop,
    judge,
    judge_whole,
    mean_bound,
    paired_bound,
    parse_drop,
    surely_below,
)
from karui.errors import MeasureFailed, UsageError

RANK = {"within": 0, "undecided": 1, "over": 2}


def outcomes(losses: int, gains: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.ones(n), np.ones(n)
    after[:losses] = 0
    before[losses : losses + gains] = 0
    return before, after


GRID = [case for case in cases() if case[0] in (100, 300, 850, 2000, 20_000)]


@pytest.mark.gate
def test_within_is_declared_in_at_most_5_percent_at_the_budget():
    assert max(size_of_test(case) for case in GRID) <= 0.05


def test_over_is_declared_in_at_most_5_percent_at_the_budget():
    assert max(size_of_test(case, over) for case in GRID) <= 0.05


def test_a_naive_judge_fails_the_same_gate():
    def wald(losses, gains, n, allowed):
        drop = (losses - gains) / n
        return drop + 1.645 * np.sqrt(((losses + gains) / n - drop**2) / n) <= allowed

    assert max(size_of_test(case, wald) for case in GRID) > 0.3


def test_the_true_size_at_all_losses_is_close_to_the_level_that_is_used():
    """All losses: losses are binomial, so that the size can be added up instead of drawn."""
    sizes = []
    for n in (300, 850, 2000, 5000):
        for allowed in (0.005, 0.01, 0.02):
            losses = np.arange(n + 1)
            most = int(np.sum(surely_below(losses, 0, n, allowed))) - 1
            sizes.append(
                sum(math.comb(n, k) * allowed**k * (1 - allowed) ** (n - k) for k in range(most + 1))
            )
    assert max(sizes) <= 0.0425
    assert max(sizes) > 0.035  # not bought with power


@pytest.mark.gate
@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_continuous_outcomes_are_calibrated_too(spread):
    rng, mean = np.random.default_rng(0), math.exp(spread**2 / 2)
    drops = rng.lognormal(0, spread, (2000, 200))
    assert np.mean([mean_bound(d, 1.0, 1, 0.05) <= mean for d in drops]) <= 0.05
    assert np.mean([mean_bound(d, 1.0, -1, 0.05) > mean for d in drops]) <= 0.05
    assert np.mean([mean_bound(d, 1.0, 1, 0.05) <= 1.4 * mean for d in drops]) > 0.3  # it has power


@settings(max_examples=60, deadline=None)
@given(st.integers(50, 3000), st.integers(0, 40), st.integers(0, 40), st.floats(0.001, 0.05))
def test_one_more_loss_never_looks_better(n, losses, gains, allowed):
    losses, gains = min(losses, n // 4), min(gains, n // 4)
    one = judge(*outcomes(losses, gains, n), allowed)
    two = judge(*outcomes(losses + 1, gains, n), allowed)
    assert RANK[two.verdict] >= RANK[one.verdict]
    assert one.low <= one.drop <= one.high


@given(st.integers(50, 2000), st.integers(0, 20), st.integers(0, 20))
def test_bounds_mirror(n, losses, gains):
    assert paired_bound(losses, gains, n, -1, 0.05) == -paired_bound(gains, losses, n, 1, 0.05)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 400), st.data())
def test_turning_any_success_into_a_failure_never_helps(n, data):
    losses = data.draw(st.integers(0, n))
    gains = data.draw(st.integers(0, n - losses))
    drop = data.draw(st.floats(-0.9, 0.9))
    now = bool(surely_below(losses, gains, n, drop))
    if losses + gains < n:
        assert now or not surely_below(losses + 1, gains, n, drop)
    if gains:
        assert now or not surely_below(losses, gains - 1, n, drop)
    assert not now or surely_below(losses, gains, n, drop + 0.01)


def test_the_interval_is_the_test_turned_round():
    found = judge(*outcomes(7, 2, 500), 0.5)
    assert surely_below(7, 2, 500, found.high + 1e-9, 0.025)
    assert not surely_below(7, 2, 500, found.high - 1e-9, 0.025)
    assert found.low == -judge(*outcomes(2, 7, 500), 0.5).high


@pytest.mark.parametrize(
    ("losses", "gains", "n", "allowed"), [(0, 0, 100, 0.005), (1, 0, 300, 0.01), (3, 2, 850, 0.005)]
)
def test_the_samples_asked_for_settle_it(losses, gains, n, allowed):
    more = judge(*outcomes(losses, gains, n), allowed).more_samples
    total = n + more
    assert surely_below(losses * total / n, gains * total / n, total, allowed)
    assert not surely_below(losses * (total - 1) / n, gains * (total - 1) / n, total - 1, allowed)


def test_no_number_of_samples_makes_a_larger_drop_small():
    found = judge(*outcomes(12, 0, 1000), 0.01)
    assert (found.verdict, found.more_samples) == ("undecided", None)


def test_no_difference_on_few_samples_proves_little():
    assert judge(*outcomes(0, 0, 100), 0.005).verdict == "undecided"
    assert judge(*outcomes(0, 0, 100), 0.005).more_samples > 100
    assert judge(*outcomes(0, 0, 100), 0.005, identical=True).verdict == "within"
    assert judge(*outcomes(0, 0, 2000), 0.005).verdict == "within"


def test_over_and_better():
    assert judge(*outcomes(100, 0, 1000), 0.01).verdict == "over"
    better = judge(*outcomes(0, 100, 1000), 0.0)
    assert better.verdict == "within"
    assert better.drop == pytest.approx(-0.1)


def test_nothing_allowed():
    assert judge(*outcomes(0, 0, 5000), 0.0).verdict == "undecided"
    assert judge(*outcomes(0, 0, 50), 0.0, identical=True).verdict == "within"
    assert judge(*outcomes(9, 0, 500), 0.0).verdict == "over"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_errors_are_judged_alike_in_any_unit(seed, unit):
    rng = np.random.default_rng(seed)
    before = rng.lognormal(0, 1, 200)
    after = before * rng.normal(1.0, 0.1, 200)
    one = judge(before, after, 0.05, higher_is_better=False)
    two = judge(before * unit, after * unit, 0.05 * unit, higher_is_better=False)
    assert (two.verdict, two.more_samples) == (one.verdict, one.more_samples)
    assert two.high == pytest.approx(one.high * unit)
    turned = judge(after, before, 0.05, higher_is_better=False)
    assert turned.low == pytest.approx(-one.high)


def test_hardly_any_change_of_errors_proves_little_either():
    before = np.random.default_rng(0).random(100)
    assert judge(before, before, 0.005).verdict == "undecided"
    assert judge(np.tile(before, 20), np.tile(before, 20), 0.005).verdict == "within"
    assert judge(before, before + 1e-6, 0.005, higher_is_better=False).verdict == "within"
    assert judge(before[:1], before[:1], 0.005).verdict == "undecided"


@pytest.mark.parametrize("after", [np.ones((4, 1)), np.ones(3), np.ones(0)])
def test_outcomes_that_are_no_pairs_are_refused(after):
    with pytest.raises(MeasureFailed, match="one number per sample"):
        judge(np.ones(4) if len(after) else after, after, 0.1)


def test_small_integers_and_truth_values_do_not_wrap():
    before, after = np.array([True, False, True]), np.array([0, 1, 1], np.uint8)
    assert judge(before, after, 0.1).drop == 0


def test_nan_outcomes_are_refused():
    with pytest.raises(MeasureFailed, match="NaN"):
        judge(np.ones(4), np.array([1, np.nan, 1, 1]), 0.1)


def test_whole_set_scores_use_the_same_samples_for_both():
    rng = np.random.default_rng(0)
    truth, noise = rng.standard_normal(500), rng.standard_normal(500) * 0.01

    def pair(rows):
        rows = slice(None) if rows is None else rows
        return float(np.corrcoef(truth[rows], truth[rows])[0, 1]), float(
            np.corrcoef(truth[rows], (truth + noise)[rows])[0, 1]
        )

    assert judge_whole(pair, 500, 0.01).verdict == "within"
    assert judge_whole(pair, 500, 0.0).verdict == "over"


def test_a_whole_score_that_never_changes_needs_samples_too():
    assert judge_whole(lambda rows: (0.9, 0.9), 50, 0.01).verdict == "undecided"
    assert judge_whole(lambda rows: (0.9, 0.9), 1000, 0.01).verdict == "within"


def test_a_whole_score_undefined_on_some_resamples():
    rare = np.zeros(300)
    rare[:4] = 1

    def pair(rows):
        drawn = rare if rows is None else rare[rows]
        return (0.9, 0.9 - 0.001 * drawn.mean()) if drawn.any() else (math.nan, math.nan)

    assert judge_whole(pair, 300, 0.05).verdict == "within"
    with pytest.raises(MeasureFailed, match="not defined"):
        judge_whole(lambda rows: (math.nan,) * 2 if rows is not None else (1.0, 1.0), 300, 0.05)
    with pytest.raises(MeasureFailed, match="NaN"):
        judge_whole(lambda rows: (math.nan, 1.0), 300, 0.05)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", (0.5, "points")),
        ("0.5pt", (0.5, "points")),
        ("2 points", (2.0, "points")),
        ("1%", (1.0, "relative")),
    ],
)
def test_drops_are_read(text, value):
    assert parse_drop(text) == value


def test_bad_budgets():
    with pytest.raises(UsageError, match="not a drop"):
        parse_drop("banana")
    for text in ("-1", "1e999", "nan", "0.5pt%", ""):
        with pytest.raises(UsageError, match="drop"):
            parse_drop(text)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="max_drop"):
            Budget(max_drop=bad)


def test_allowed_drop():
    assert Budget(0.5).allowed(0.9) == pytest.approx(0.005)
    assert Budget(1.0, "relative").allowed(0.2) == pytest.approx(0.002)
    assert default_drop(True) == (1.0, "points")
    assert default_drop(False) == (1.0, "relative")
