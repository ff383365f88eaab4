"""The judge: calibrated, monotone, honest about what it cannot know."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.budget_calibration import size_of_test
from hypothesis import given, settings
from hypothesis import strategies as st

from karui.budget import Budget, default_drop, judge, judge_whole, paired_bound, parse_drop
from karui.errors import MeasureFailed, UsageError

RANK = {"within": 0, "undecided": 1, "over": 2}


def outcomes(losses: int, gains: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.ones(n), np.ones(n)
    after[:losses] = 0
    before[losses : losses + gains] = 0
    return before, after


@pytest.mark.gate
@pytest.mark.parametrize(
    "case",
    [(100, 0.01, 0.01), (200, 0.05, 0.1), (500, 0.002, 0.01), (1000, 0.005, 0.006), (2000, 0.01, 0.05),
     (5000, 0.005, 0.1), (10_000, 0.002, 0.04), (20_000, 0.01, 0.2)],
)  # fmt: skip
def test_within_is_declared_in_at_most_5_percent_at_the_budget(case):
    assert size_of_test(*case) <= 0.05


def test_a_naive_judge_fails_the_same_gate():
    def wald(losses: int, gains: int, n: int, side: int, alpha: float) -> float:
        drop = (losses - gains) / n
        return drop + 1.645 * math.sqrt(((losses + gains) / n - drop**2) / n)

    assert size_of_test(500, 0.002, 0.002, bound=wald) > 0.05


@pytest.mark.gate
def test_continuous_outcomes_are_calibrated_too():
    rng, declared = np.random.default_rng(0), 0
    for _ in range(200):
        errors = rng.lognormal(0, 1, 1000)
        found = judge(np.zeros(1000), errors, math.exp(0.5), higher_is_better=False)
        declared += found.verdict == "within"
    assert declared / 200 <= 0.07  # 5 % and two standard errors of 200 draws, rounded down


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
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="max_drop"):
            Budget(max_drop=bad)


def test_allowed_drop():
    assert Budget(0.5).allowed(0.9) == pytest.approx(0.005)
    assert Budget(1.0, "relative").allowed(0.2) == pytest.approx(0.002)
    assert default_drop(True) == (1.0, "points")
    assert default_drop(False) == (1.0, "relative")
