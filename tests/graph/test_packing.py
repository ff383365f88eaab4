"""Weights that are mostly one value come back as they were, from as few bytes as they need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karui.graph.packing import packed, unpacked


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(("float32", "float16", "int8", "uint8", "float64")),
    st.floats(0, 1),
    st.integers(1024, 6000),
    st.integers(0, 99),
)
def test_it_comes_back_to_the_last_bit(kind, share, size, seed):
    rng = np.random.default_rng(seed)
    weight = rng.integers(1, 100, size).astype(kind)
    weight[rng.random(size) < share] = 128 if kind == "uint8" else 0
    weight = weight.reshape(1, size)
    found = packed(weight)
    if found is None:
        assert share < 0.75  # with more there is always something to gain
        return
    assert unpacked(found).tobytes() == weight.tobytes() and unpacked(found).shape == weight.shape
    assert found.size_bytes < 0.75 * weight.nbytes


@pytest.mark.gate
@pytest.mark.parametrize(("share", "most"), [(0.8, 0.24), (0.9, 0.14), (0.95, 0.07), (0.99, 0.016)])
def test_floats_take_the_bytes_of_what_is_not_zero(share, most):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(100_000).astype(np.float32) * (rng.random(100_000) >= share)
    assert packed(weight).size_bytes < most * weight.nbytes


def test_nothing_is_done_where_nothing_is_gained():
    assert packed(np.random.default_rng(0).standard_normal(5000)) is None
    assert packed(np.zeros(100, np.float32)) is None
