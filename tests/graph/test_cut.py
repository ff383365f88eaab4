"""The cut is exact: cut model = uncut model with the same slices set to zero, on a zoo of small networks."""

from __future__ import annotations

import collections

import pytest
import torch
from benchmarks.zoo import CASES, built
from benchmarks.zoo.exact import check

torch.set_num_threads(1)
PART = CASES[::3]  # make zoo runs all of them, with three seeds and ratios
OUTCOMES = collections.Counter()


@pytest.mark.gate
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PART, ids=lambda case: case.name)
def test_what_is_removed_leaves_no_trace(case):
    found = check(case, built(case, 0), 0.5, 0)
    OUTCOMES[found.verdict] += 1
    OUTCOMES["reached"] += found.reached and found.verdict == "exact"
    assert found.verdict in ("exact", "nothing", "refused"), found
    if found.verdict == "refused":
        assert case.frozen
    if found.verdict == "nothing":
        assert found.why


@pytest.mark.gate
def test_most_of_the_zoo_reaches_the_ratio():
    if sum(OUTCOMES.values()) < len(PART):
        pytest.skip("needs the outcomes of the whole zoo")
    assert len(PART) >= 120
    assert OUTCOMES["reached"] >= 0.85 * len(PART)
