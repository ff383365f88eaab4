"""The search on spaces that were measured whole by benchmarks/search.py, told what each recipe came to."""

from __future__ import annotations

import pytest
from benchmarks.search import NEAR, RESULTS, SPACES, read, replay, rows_file, speed

from karui.search import sample


@pytest.mark.gate
@pytest.mark.parametrize("name", SPACES)
def test_it_comes_within_three_percent_of_the_best_in_a_quarter_of_the_evaluations(name):
    measured = read(rows_file(RESULTS, name))
    best = speed(list(measured.rows.values()))
    for seed in (1, 5):
        trials = replay(measured, seed)
        assert len(trials) <= len(measured.allowed) / 4
        assert speed(trials) >= (1 - NEAR) * best, seed


def test_the_sampler_never_asks_for_a_precision_that_the_runtime_has_not(monkeypatch):
    """It did, and what is never tried never disappoints: half of the searches came nowhere."""
    measured, asked = read(rows_file(RESULTS, "mnist")), []
    monkeypatch.setattr(
        sample, "asked", lambda *given, ask=sample.asked: asked.append(ask(*given)) or asked[-1]
    )
    replay(measured, 1)
    assert asked
    assert {point[-2:] for point in asked} <= {point[-2:] for point in measured.allowed}
