"""Batches: every sample once a pass, in an order that the seed tells, and what is held out stays out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from karui.data import Split
from karui.errors import UsageError
from karui.graph.training.feed import Feed

ROWS = torch.arange(40, dtype=torch.float32).view(40, 1)
SETS = {
    "a split": lambda: Split({"x": ROWS.numpy()}, np.arange(40)),
    "a pair": lambda: (ROWS, torch.arange(40)),
    "a dataset": lambda: TensorDataset(ROWS, torch.arange(40)),
    "batches": lambda: list(zip(ROWS.split(4), torch.arange(40).split(4))),
    "a function": lambda: lambda: (ROWS, torch.arange(40)),
}


def seen(batches) -> list[int]:
    return [int(row) for batch in batches for row in batch.inputs["x"][:, 0]]


@pytest.mark.parametrize("kind", SETS)
def test_a_pass_gives_every_sample_once_in_the_order_of_the_seed(kind):
    feed = Feed(SETS[kind](), ["x"], 4, seed=1)
    one, again, other = seen(feed.one_pass(0)), seen(feed.one_pass(0)), seen(feed.one_pass(1))
    assert sorted(one) == list(range(40)) == sorted(other)
    assert one == again and (one != other or kind == "batches")
    assert feed.steps_a_pass() == 10
    for batch in feed.one_pass(0):
        assert np.array_equal(batch.targets, batch.inputs["x"][:, 0])


@pytest.mark.parametrize("kind", SETS)
def test_what_is_held_out_is_never_trained_on(kind):
    feed = Feed(SETS[kind](), ["x"], 4, seed=1, held_out=0.2)
    out, trained = seen(feed.held()), seen(feed.one_pass(0)) + seen(feed.one_pass(1))
    assert len(out) == 8 and not set(out) & set(trained)
    assert sorted(set(out) | set(trained)) == list(range(40))
    assert out == seen(feed.held()) and feed.steps_a_pass() == 8
    assert out != seen(Feed(SETS[kind](), ["x"], 4, seed=2, held_out=0.2).held())


def test_an_iterable_cannot_hold_anything_out():
    def endless():
        return iter([(ROWS, torch.arange(40))])

    with pytest.raises(UsageError, match="nothing can be held out") as error:
        Feed(endless, ["x"], 4, held_out=0.1).held()
    assert "may give the same samples again" in error.value.why


def test_batches_of_one_and_of_other_sizes_than_a_model_takes_are_left_out():
    sizes = [ROWS[:1], ROWS[:3], ROWS[:4]]
    assert [len(batch) for batch in Feed(sizes, ["x"], 4).one_pass(0)] == [3, 4]
    assert [len(batch) for batch in Feed(sizes, ["x"], 4, rows=4).one_pass(0)] == [4]
