"""Fits on what stays are exact; shares of zeros are those of least damage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karui.graph.gram import inverse, on_support
from karui.graph.zero_shares import Curve, curve, least_damage


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 999))
def test_conjugate_gradients_solve_each_output_on_its_own_support(n, outputs, seed):
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(40, n, generator=drawn, dtype=torch.float64)
    H, start = x.T @ x, torch.randn(outputs, n, generator=drawn, dtype=torch.float64)
    targets = H @ torch.randn(n, outputs, generator=drawn, dtype=torch.float64)
    support = torch.rand(outputs, n, generator=drawn) < 0.6
    found = on_support(H, targets, start, support, ridge=1e-9, steps=200)
    for row in range(outputs):
        keep = support[row]
        exact = torch.linalg.solve(H[keep][:, keep], targets[keep, row])
        torch.testing.assert_close(found[row, keep], exact, rtol=1e-3, atol=1e-3)
        assert bool((found[row, ~keep] == 0).all())


def test_an_empty_support_gives_zeros():
    H = torch.eye(3, dtype=torch.float64)
    found = on_support(H, H, torch.ones(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.bool))
    assert bool((found == 0).all())


@pytest.mark.gate
@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.5, 4), min_size=2, max_size=3), st.floats(0.3, 0.9), st.integers(0, 99))
def test_shares_cost_no_more_than_any_others_on_a_grid(steepness, goal, seed):
    levels = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
    rng = np.random.default_rng(seed)
    curves = [
        Curve(str(i), int(rng.integers(100, 1000)), levels, tuple(1e-6 * np.exp(k * 10 * np.array(levels))))
        for i, k in enumerate(steepness)
    ]
    total = sum(one.size for one in curves)
    chosen = least_damage(curves, goal)
    assert sum(chosen[one.path] * one.size for one in curves) / total == pytest.approx(goal, abs=0.01)
    spent = sum(float(one.at(np.array([chosen[one.path]]))[0]) for one in curves)
    for shares in itertools.product(np.linspace(0, 0.95, 12), repeat=len(curves)):
        if sum(share * one.size for share, one in zip(shares, curves)) >= goal * total:
            other = sum(float(one.at(np.array([share]))[0]) for share, one in zip(shares, curves))
            assert spent <= other * 1.05 + 1e-9


def test_a_curve_goes_as_far_as_the_goal_can_ask_and_never_falls():
    seen = []
    found = curve("w", 10, 0.6, 0.8, lambda share: seen.append(share) or 1 - share)
    assert found.shares[0] == 0.6
    assert seen == [0.7, 0.8, 0.9, 0.95, 0.98]
    assert list(found.errors) == sorted(found.errors)


def test_inputs_that_hardly_vary_leave_noise_and_are_factored_all_the_same():
    """What float32 leaves of them may have a negative eigenvalue; what is not finite is an error."""
    noise = torch.tensor([[6.2e-6, -4.1e-6, 8e-6], [-4.2e-6, 1e-7, 3e-6], [7e-6, 3e-6, 2e-6]]).double()
    assert torch.linalg.eigvalsh(noise).min() < 0
    assert (torch.linalg.eigvalsh(inverse(noise, 1e-2)) > 0).all()
    with pytest.raises(RuntimeError):
        inverse(noise * torch.nan)
