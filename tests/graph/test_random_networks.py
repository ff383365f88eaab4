"""Cut = masked on random exported networks; ``make zoo`` runs a thousand seeds."""

from __future__ import annotations

import pytest
import torch
from benchmarks.zoo import built
from benchmarks.zoo.exact import check
from benchmarks.zoo.random_networks import random_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch.set_num_threads(1)


@pytest.mark.gate
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from((0.2, 0.5, 0.75)))
def test_a_random_network_is_cut_exactly(seed, ratio):
    case = random_case(seed)
    found = check(case, built(case, seed), ratio, seed)
    assert found.verdict in ("exact", "nothing"), (seed, found)
