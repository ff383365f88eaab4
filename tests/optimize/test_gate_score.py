"""The gate's score: a point less on the locked samples is caught, near ties are not; outcomes keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from karui.optimize.gate import judge_score
from karui.optimize.lock import pack_outcomes, unpack_outcomes
from karui.score import SCORES

TOP1, HALF_A_POINT = SCORES["top1"], 0.005


def outcomes(n, losses, gains, seed=0):
    """Right and wrong of ``n`` samples, before and after so many turned."""
    rng = np.random.default_rng(seed)
    before = np.zeros(n)
    before[: int(0.9 * n)] = 1
    after = before.copy()
    after[rng.choice(int(0.9 * n), losses, replace=False)] = 0
    after[int(0.9 * n) + rng.choice(n - int(0.9 * n), gains, replace=False)] = 1
    return before, after


@pytest.mark.gate
@pytest.mark.parametrize("n", [300, 1000, 10_000])
@pytest.mark.parametrize("churn", [0, 0.01])
def test_one_point_worse_is_caught(n, churn):
    turned = int(churn * n)
    for seed in range(20):
        before, after = outcomes(n, n // 100 + turned, turned, seed)
        assert judge_score(before, after, HALF_A_POINT, TOP1).verdict == "regression"


@pytest.mark.gate
@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (2, 0), (25, 25), (4, 0), (0, 30)])
def test_near_ties_and_gains_are_no_alarm(losses, gains):
    assert judge_score(*outcomes(1000, losses, gains), HALF_A_POINT, TOP1).verdict == "as locked"


def test_a_small_set_cannot_tell_two_samples_from_rounding():
    found = judge_score(*outcomes(100, 2, 0), HALF_A_POINT, TOP1)
    assert (found.verdict, found.detail.rpartition("; ")[2]) == (
        "undecided",
        "100 samples are too few to tell",
    )
    assert judge_score(*outcomes(100, 3, 0), HALF_A_POINT, TOP1).verdict == "regression"


def test_an_error_that_grows_is_a_drop():
    errors = np.linspace(0.1, 1, 50)
    assert judge_score(errors, errors * 1.02, 0.005 * errors.mean(), SCORES["mse"]).verdict == "regression"
    assert judge_score(errors, errors * 1.001, 0.005 * errors.mean(), SCORES["mse"]).verdict == "as locked"


@given(arrays.arrays(np.float64, st.integers(1, 40), elements=st.sampled_from([0.0, 1.0])))
def test_a_bit_each(values):
    packed = pack_outcomes(values)
    assert packed["form"] == "bits" and len(packed["data"]) <= 4 * (len(values) // 24 + 1)
    assert np.array_equal(unpack_outcomes(packed), values)


@given(arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)))
def test_other_outcomes_keep_every_digit(values):
    assert np.array_equal(unpack_outcomes(pack_outcomes(values)), values)
