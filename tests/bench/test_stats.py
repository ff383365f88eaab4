"""Ratios: the interval covers, the verdict has a resolution, and noise that hits both cancels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karui.bench import stats
from karui.bench.stats import P99_FROM, half_width, percentiles, settled, spread_of_openings, thin, widened
from karui.errors import MeasureFailed


def speed_ratio(base, other, *, seed: int = 0):
    """Of a single opening."""
    return stats.speed_ratio([base], [other], seed=seed)


def noisy(rng: np.random.Generator, rounds: int, correlation: float, spread: float = 0.03) -> np.ndarray:
    """Log-normal noise around 1 with neighbouring rounds alike."""
    fresh = rng.normal(0, spread, rounds)
    logs = np.zeros(rounds)
    for i in range(rounds):
        logs[i] = correlation * (logs[i - 1] if i else 0) + fresh[i] * np.sqrt(1 - correlation**2)
    return np.exp(logs)


@pytest.mark.parametrize(
    ("rounds", "correlation", "least"), [(15, 0.0, 0.95), (60, 0.0, 0.93), (60, 0.5, 0.88)]
)
def test_the_interval_covers(rounds, correlation, least):
    rng = np.random.default_rng(0)
    found = [speed_ratio(noisy(rng, rounds, correlation), np.ones(rounds)) for _ in range(200)]
    assert np.mean([r.low <= 1 <= r.high for r in found]) >= least


@pytest.mark.gate
def test_alike_is_alike_and_5_percent_slower_is_slower():
    rng = np.random.default_rng(1)
    alike, slowed = [], []
    for _ in range(100):
        bias = np.exp(rng.normal(0, 0.005))  # where a process's memory happens to lie
        base, other = noisy(rng, 60, 0.3), noisy(rng, 60, 0.3) * bias
        alike.append(speed_ratio(base, other).verdict)
        slowed.append(speed_ratio(base, other * 1.05).verdict)
    assert alike.count("no measurable difference") >= 95
    assert slowed.count("slower") >= 90


def test_a_burst_that_hits_both_cancels():
    rng = np.random.default_rng(2)
    burst = np.where(rng.random(60) < 0.3, 5.0, 1.0)
    found = speed_ratio(burst * 2, burst * 1.0)
    assert found.ratio == pytest.approx(2)
    assert found.verdict == "faster"


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 60), st.floats(0.2, 5), st.integers(0, 5))
def test_turning_it_round_and_scaling(rounds, factor, seed):
    rng = np.random.default_rng(seed)
    one, two = noisy(rng, rounds, 0.0), noisy(rng, rounds, 0.0) * factor
    there, back = speed_ratio(one, two, seed=seed), speed_ratio(two, one, seed=seed)
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.low <= there.ratio <= there.high
    scaled = speed_ratio(one * 7, two * 7, seed=seed)
    assert scaled.ratio == pytest.approx(there.ratio)
    assert scaled.verdict == there.verdict


def test_settled_means_a_narrow_interval():
    steady = speed_ratio([1.0] * 30, [0.5] * 30)
    assert half_width(steady) == 0
    assert settled(steady)
    assert not settled(speed_ratio(noisy(np.random.default_rng(0), 15, 0, 0.3), np.ones(15)))


def test_p99_only_from_a_thousand():
    assert percentiles([1.0] * (P99_FROM - 1))["p99"] is None
    assert percentiles([1.0] * P99_FROM)["p99"] == 1.0


def test_thinning_keeps_quantiles():
    values = np.random.default_rng(0).lognormal(size=5000).tolist()
    thinned = thin(values)
    assert len(thinned) == 200
    assert np.median(thinned) == pytest.approx(np.median(values), rel=0.02)


def coverage(rounds: int, memory: float) -> float:
    rng, found = np.random.default_rng(3), []
    for _ in range(200):
        one = speed_ratio(noisy(rng, rounds, memory), np.ones(rounds))
        found.append(one.low <= 1 <= one.high)
    return float(np.mean(found))


def test_bursts_are_allowed_for(monkeypatch):
    allowed_for = coverage(120, 0.7)
    monkeypatch.setattr(stats, "correlation", lambda logs: 0.0)
    assert coverage(120, 0.7) < 0.75
    assert allowed_for > 0.88


def test_few_rounds_claim_nothing():
    assert speed_ratio([2.0] * 5, [1.0] * 5).verdict == "no measurable difference"
    assert speed_ratio([2.0] * 6, [1.0] * 6).verdict == "faster"
    one = speed_ratio([2.0], [1.0])
    assert (one.low, one.ratio, one.high) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("bad", [[], [0.0] * 9, [float("nan")] * 9, [-1.0] * 9])
def test_times_must_be_positive(bad):
    with pytest.raises(MeasureFailed, match="speed-up"):
        speed_ratio(bad, [1.0] * 9)


def test_the_same_seed_gives_the_same_interval():
    base = noisy(np.random.default_rng(0), 40, 0.5)
    assert speed_ratio(base, np.ones(40), seed=3) == speed_ratio(base, np.ones(40), seed=3)


def opened(rng: np.random.Generator, count: int, rounds: int, spread: float) -> list[np.ndarray]:
    """Several openings: each process is off by a factor of its own for as long as it lives."""
    return [noisy(rng, rounds, 0.3) * np.exp(rng.normal(0, spread)) for _ in range(count)]


@pytest.mark.gate
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.04])
def test_the_interval_covers_what_another_session_would_find(spread):
    """Also where processes differ by more than rounds do; one opening alone cannot know that."""
    rng = np.random.default_rng(4)
    ones, single, several = [np.ones(20)] * 5, [], []
    for _ in range(300):
        found = stats.speed_ratio(opened(rng, 5, 20, spread), ones)
        several.append(found.low <= 1 <= found.high)
        alone = stats.speed_ratio(opened(rng, 1, 100, spread), [np.ones(100)])
        single.append(alone.low <= 1 <= alone.high)
    assert np.mean(several) >= 0.92
    assert spread < 0.04 or np.mean(single) < 0.5


def test_spread_between_openings_is_measured_and_lent_to_single_ones():
    rng = np.random.default_rng(5)
    ones = [np.ones(20)] * 200
    assert spread_of_openings(opened(rng, 200, 20, 0.05), ones) == pytest.approx(0.05, rel=0.2)
    assert np.isnan(spread_of_openings(ones[:1], ones[:1]))
    narrow = speed_ratio(noisy(rng, 60, 0.0) * 1.05, np.ones(60))
    wide = widened(narrow, 0.05)
    assert narrow.verdict == "faster"
    assert wide.verdict == "no measurable difference"
    assert wide.ratio == narrow.ratio
    assert np.log(wide.high / wide.ratio) == pytest.approx(
        np.hypot(np.log(narrow.high / narrow.ratio), 0.098)
    )
