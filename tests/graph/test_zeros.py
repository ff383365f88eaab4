"""Zeros in weights outlive every optimizer, and nothing else is held."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from karui.graph.zeros import held, put, zeros_of

OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, 0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda weights: torch.optim.Adam(weights, 0.01, weight_decay=0.1),
    "adamw": lambda weights: torch.optim.AdamW(weights, 0.01),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, 0.01, momentum=0.9),
}


def net_with_zeros(seed: int, share: float) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(64, 3))
    for part in (net[0], net[4]):
        part.weight.data[torch.rand_like(part.weight) < share] = 0
    return net


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, count: int = 5) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        net(torch.randn(8, 1, 6, 6)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), share=st.sampled_from([0.1, 0.5, 0.9]))
def test_zeros_stay_exactly_zero_and_the_rest_moves(kind, seed, share):
    net = net_with_zeros(seed, share)
    zeros, before = zeros_of(net), {name: one.detach().clone() for name, one in net.named_parameters()}
    assert set(zeros) == {"0.weight", "4.weight"}
    optimizer = OPTIMIZERS[kind](net.parameters())
    with held(net):
        steps(net, optimizer)
        during = zeros_of(net)
    assert all(torch.equal(during[name], zero) for name, zero in zeros.items())
    moved = {name: one.detach() != before[name] for name, one in net.named_parameters()}
    for name, zero in zeros.items():
        assert not moved[name][zero].any() and moved[name][~zero].float().mean() > 0.5
    assert moved["0.bias"].any() and moved["1.weight"].any()
    steps(net, optimizer, 1)
    assert zeros_of(net).get("4.weight", zeros["4.weight"][:0]).sum() < zeros["4.weight"].sum()


def test_two_of_four_is_kept():
    weight = nn.Linear(16, 8)
    grouped = weight.weight.data.view(-1, 4)
    grouped.scatter_(1, grouped.abs().argsort(1)[:, :2], 0.0)
    with held(weight):
        optimizer = torch.optim.AdamW(weight.parameters(), 0.1)
        for _ in range(4):
            optimizer.zero_grad()
            weight(torch.randn(4, 16)).square().sum().backward()
            optimizer.step()
    assert ((weight.weight.view(-1, 4) == 0).sum(1) == 2).all()


def test_what_counts_as_zeros():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    net[3].weight = net[0].weight
    net[0].weight.data[0] = 0
    net[0].bias.data[0] = net[2].weight.data[0] = 0  # one axis: not pruned
    nn.init.zeros_(net[1].weight)  # waits for its training
    zeros = zeros_of(net)
    assert list(zeros) == ["0.weight"] and zeros["0.weight"].sum() == 4


def test_frozen_weights_and_loops_that_write_by_hand():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    net[0].weight.data[:2] = net[1].weight.data[:, 0] = 0
    net[0].weight.requires_grad_(False)
    with held(net):
        net[1].weight.data += 1
    assert (net[1].weight[:, 0] == 0).all() and (net[1].weight[:, 1:] != 0).all()
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    put(other, zeros_of(net))  # a layer of another shape is left alone
    assert (other[0].weight[:2] == 0).all() and (other[1].weight != 0).all()
