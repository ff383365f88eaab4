"""iterative: rounds reach the goal, stop where too much would change, and tell what each of them cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import karui
from karui.errors import UsageError
from karui.graph.goals import goal_of, stays_after, towards
from karui.graph.inspect import state_digest
from karui.recipe import parse_named

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((300, 4)) @ rng.standard_normal((4, 16))).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def iterate(model, data, options):
    text = f"iterative:{options}" if options else "iterative"
    return karui.apply(text, model, inputs=torch.from_numpy(data[:4]), calibrate=[torch.from_numpy(data)])


def zeros(model):
    weights = [p for p in model.parameters() if p.ndim > 1]
    return sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)


@given(st.sampled_from(("linear", "cubic", "geometric")), st.floats(0.02, 0.98), st.integers(1, 9))
def test_schedules_go_down_from_the_whole_to_the_goal(schedule, end, rounds):
    shares = [stays_after(schedule, end, done / rounds) for done in range(rounds + 1)]
    assert shares[0] == pytest.approx(1) and shares[-1] == pytest.approx(end)
    assert all(before > after for before, after in zip(shares, shares[1:]))


@pytest.mark.parametrize(
    ("text", "stays", "wanted"),
    [
        ("prune_weights:sparsity=0.9", 0.1, "prune_weights:sparsity=0.75"),
        ("prune_channels:macs=0.2,multiple_of=8", 0.2, "prune_channels:macs=0.5,multiple_of=8"),
        ("prune_channels:ratio=0.8", 0.2, "prune_channels:ratio=0.5"),
    ],
)
def test_a_round_asks_for_its_part_of_the_way(text, stays, wanted):
    step = parse_named(text)
    assert goal_of(step)[1] == pytest.approx(stays)
    assert str(towards(step, 0.5, 0.25)) == wanted


@pytest.mark.gate
def test_zeros_grow_to_the_goal_and_are_held_through_training(model, data):
    before = state_digest(model)
    found = iterate(model, data, 'prune="prune_weights:sparsity=0.8",recover=["finetune:steps=20"]')
    assert zeros(found.model) == pytest.approx(0.8, abs=0.01)
    told = found.facts["rounds"]
    assert [round(1 - one["stays"], 2) for one in told] == [0.56, 0.77, 0.8]
    assert all(one["zeros"] < other["zeros"] for one, other in zip(told, told[1:]))
    assert state_digest(model) == before
    assert list(found.facts["curve"].values()) == [one["changed_percent"] for one in told]


@pytest.mark.gate
def test_recovery_brings_the_answers_back(model, data):
    prune = 'prune="prune_weights:sparsity=0.85,importance=l1,compensate=false"'
    alone = iterate(model, data, f"{prune},recover=[],rounds=2").facts
    helped = iterate(model, data, f'{prune},recover=["finetune:steps=150,lr=0.01"],rounds=2').facts
    assert alone["recover"] == []
    assert helped["changed_percent"] < 0.6 * alone["changed_percent"]


def test_of_several_ways_to_recover_the_better_one_goes_on(model, data):
    ways = '["finetune:steps=1,lr=0.000001","finetune:steps=150,lr=0.01"]'
    prune = 'prune="prune_weights:sparsity=0.85,importance=l1,compensate=false"'
    found = iterate(model, data, f"{prune},recover={ways},rounds=2").facts
    assert found["recover"] == ["finetune:steps=150,lr=0.01"]
    assert len(found["rounds"][0]["recovered_by"]) == 2
    assert "recovered_by" not in found["rounds"][1]


def test_it_stops_with_the_last_model_that_held_the_limit(model, data):
    prune = 'prune="prune_weights:sparsity=0.98,importance=l1,compensate=false"'
    options = f"{prune},recover=[],rounds=4,schedule=linear"
    whole = iterate(model, data, options).facts["rounds"]
    limit = whole[1]["changed_percent"]
    assert whole[2]["changed_percent"] > limit
    found = iterate(model, data, f"{options},max_change={limit}")
    assert len(found.facts["rounds"]) == 2
    assert zeros(found.model) == pytest.approx(whole[1]["zeros"], abs=0.02)
    assert "round 3 changed" in found.facts["stopped"]


def test_where_not_even_the_first_round_holds_nothing_is_touched(model, data):
    found = iterate(
        model, data, 'prune="prune_weights:sparsity=0.99,compensate=false",recover=[],max_change=0'
    )
    assert not found.touched
    assert "max_change" in found.skipped["the model"]
    assert zeros(found.model) == 0


def test_channels_go_in_rounds_too(model, data):
    found = iterate(model, data, 'prune="prune_channels:ratio=0.5",recover=["finetune:steps=5"],rounds=2')
    assert [len(found.model[i].weight) for i in (0, 2)] == [16, 16]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("rounds=0", "at least 1"),
        ("max_change=101", "percentage"),
        ('prune="prune_channels"', "no goal"),
        ('prune="prune_weights:sparsity=2"', "between 0 and 1"),
        ('prune="nothing:sparsity=0.5"', "no technique"),
        ('recover=["iterative"]', "not itself"),
    ],
)
def test_bad_options_are_refused_in_words(model, data, options, words):
    with pytest.raises(UsageError, match=words):
        iterate(model, data, options)


def test_one_step_that_should_be_a_list_is_refused_with_how_to_write_it(model, data):
    with pytest.raises(UsageError) as found:
        iterate(model, data, 'recover="finetune:steps=5"')
    assert found.value.why == "it takes a list" and found.value.fix == 'recover=["finetune:steps=5"]'
