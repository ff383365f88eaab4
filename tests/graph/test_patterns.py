"""Patterns of zeros: as many as asked for, where the pattern allows them, the smallest scores first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karui.errors import UsageError
from karui.graph.patterns import cells, follows, kept, misfit, parse_pattern

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4))
BLOCKS = ("any", "2x1", "4x2", "kernel", "row", "column")


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(BLOCKS), st.sampled_from((0, 1)), st.floats(0, 1), st.integers(0, 99))
def test_blocks_go_as_a_whole_and_those_of_the_lowest_scores(shape, text, axis, share, seed):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    pattern = parse_pattern(text)
    stay = kept(scores, axis, pattern, share)
    assert follows(scores * stay, axis, pattern)
    numbers = cells(shape, axis, pattern)
    means = [float(scores[numbers == i].mean()) for i in range(int(numbers.max()) + 1)]
    staying = [i for i in range(len(means)) if bool(stay[numbers == i].all())]
    assert len(staying) == round(share * len(means))
    assert int(stay.sum()) == sum(int((numbers == i).sum()) for i in staying)
    going = [mean for i, mean in enumerate(means) if i not in staying]
    assert not going or not staying or min(means[i] for i in staying) >= max(going) - 1e-12


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from(("1:2", "2:4", "3:8")), st.sampled_from((0, 1)))
def test_n_of_every_m_inputs_stay(outputs, groups, text, axis):
    pattern = parse_pattern(text)
    shape = [outputs, groups * pattern.m, 2]
    scores = torch.rand(shape if axis == 0 else [shape[1], shape[0], 2])
    stay = kept(scores, axis, pattern, 0.0)
    along = stay if axis == 0 else stay.transpose(0, 1)
    grouped = along.reshape(outputs, groups, pattern.m, 2)
    assert bool((grouped.sum(2) == pattern.n).all())
    assert follows(scores * stay, axis, pattern)
    lost = scores[~stay].sum()
    assert float(lost) <= float(scores.sum()) * pattern.zeros + 1e-6


def test_cells_of_a_kernel():
    assert cells((1, 2, 2, 2), 0, parse_pattern("kernel")).reshape(2, 4).tolist() == [[0] * 4, [1] * 4]
    assert cells((1, 1, 2, 2), 0, parse_pattern("row")).reshape(2, 2).tolist() == [[0, 0], [1, 1]]
    assert cells((1, 1, 2, 2), 0, parse_pattern("column")).reshape(2, 2).tolist() == [[0, 1], [0, 1]]
    assert cells((3, 2), 0, parse_pattern("2x1")).tolist() == [[0, 1], [0, 1], [2, 3]]


def test_what_breaks_a_pattern_is_seen():
    weight = torch.ones(2, 4)
    assert not follows(weight, 0, parse_pattern("2:4"))
    weight[0, 0] = 0.0
    assert not follows(weight, 0, parse_pattern("2x1"))
    weight[1, 0] = 0.0
    assert follows(weight, 0, parse_pattern("2x1"))


@pytest.mark.parametrize(
    ("shape", "text", "reason"),
    [((8, 6), "2:4", "6 input channels"), ((8, 6), "kernel", "no kernel"), ((8, 6), "3x5", None)],
)
def test_weights_that_cannot_follow_are_named_with_why(shape, text, reason):
    found = misfit(shape, 0, parse_pattern(text))
    assert (found is None) if reason is None else reason in found


@pytest.mark.parametrize("text", ["", "4:2", "0:4", "2:2", "0x4", "some"])
def test_other_words_are_refused(text):
    with pytest.raises(UsageError, match="no pattern of zeros") as error:
        parse_pattern(text)
    assert "2:4" in error.value.fix
