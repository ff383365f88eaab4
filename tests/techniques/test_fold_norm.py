from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from karui.demo.networks import FashionResNet
from karui.graph.call import run, run_all, signature_of
from karui.techniques import Applied, Given
from karui.techniques.fold_norm import FoldNorm


def settled(model: nn.Module, rows: torch.Tensor) -> nn.Module:
    """``model`` in eval mode with statistics and scales that are not those of fresh norms."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    model(rows)
    return model.eval()


def applied(model: nn.Module, rows: torch.Tensor) -> tuple[Applied, float]:
    """What the technique did, and the largest change of the outputs as a share of their scale."""
    signature, arrays = signature_of(model, rows, 1)
    before = run_all(model, signature.style, arrays)[0]
    done = FoldNorm().apply(copy.deepcopy(model), Given(arrays, arrays, signature))
    after = run(done.model, signature.style, arrays)[0][0]
    return done, float(np.abs(after - before).max() / np.abs(before).max())


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


PAIRS = [
    (nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), (8, 2, 9)),
    (nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (8, 4, 5, 5)),
    (nn.Conv2d(2, 6, 3, padding="same"), nn.BatchNorm2d(6), (8, 2, 5, 5)),
    (nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(6), (8, 2, 5, 5)),
    (nn.Conv3d(2, 6, 2), nn.BatchNorm3d(6, affine=False), (8, 2, 3, 3, 3)),
    (nn.ConvTranspose1d(2, 6, 3), nn.BatchNorm1d(6), (8, 2, 5)),
    (nn.ConvTranspose2d(2, 6, 3, stride=2), nn.BatchNorm2d(6), (8, 2, 4, 4)),
    (nn.Linear(5, 6), nn.BatchNorm1d(6), (8, 5)),
    (nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), (8, 5)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), PAIRS, ids=lambda value: type(value).__name__)
def test_a_norm_goes_into_the_layer_before_it(layer, norm, shape):
    torch.manual_seed(0)
    rows = torch.randn(shape)
    done, change = applied(settled(nn.Sequential(layer, norm, nn.ReLU()), rows), rows)
    assert done.touched == ("0",) and not done.skipped and done.facts == {"folded": 1}
    assert change < 1e-5
    assert isinstance(done.model[1], nn.Identity) and done.model[0].bias is not None


def test_a_whole_network_keeps_its_outputs():
    torch.manual_seed(0)
    rows = torch.randn(8, 1, 28, 28)
    model = settled(FashionResNet(), rows)
    done, change = applied(model, rows)
    assert norms(model) == 9 and norms(done.model) == 0
    assert done.facts["folded"] == 9 and not done.skipped
    assert change < 1e-4
    assert type(done.model) is FashionResNet


class Odd(nn.Module):
    """Norms that must stay, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.after_relu, self.used_twice, self.own_batch = (nn.BatchNorm2d(4) for _ in range(3))
        self.own_batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.again, self.tied, self.unused, self.groups = (nn.BatchNorm2d(4) for _ in range(4))
        self.sequence = nn.BatchNorm1d(3)
        self.one, self.two, self.three, self.loop, self.five, self.six = (
            nn.Conv2d(4, 4, 1) for _ in range(6)
        )
        self.six.weight = self.five.weight
        self.up = nn.ConvTranspose2d(4, 4, 1, groups=2)
        self.line = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.after_relu(torch.relu(self.one(x)))
        y = self.two(x)
        x = self.own_batch(self.three(self.used_twice(y) + y))
        x = self.again(self.loop(self.again(self.loop(x))))
        x = self.groups(self.up(self.tied(self.five(x)) + self.six(x)))
        return self.sequence(self.line(x[:, :3, :, 0]))


def test_norms_that_must_stay_have_their_reasons():
    torch.manual_seed(0)
    rows = torch.randn(8, 4, 4, 4)
    model = settled(Odd(), rows)
    done, change = applied(model, rows)
    assert done.touched == () and change == 0 and norms(done.model) == norms(model)
    words = {
        "after_relu": "does not follow", "used_twice": "used elsewhere", "own_batch": "batch at hand",
        "again": "more than once", "tied": "five is shared", "unused": "do not reach",
        "groups": "in groups", "sequence": "sequences",
    }  # fmt: skip
    assert set(done.skipped) == set(words)
    for path, word in words.items():
        assert word in done.skipped[path], (path, done.skipped[path])


class Biasless(nn.Conv2d):
    """What it computes leaves its bias out."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight, None, self.stride)


def test_a_layer_whose_forward_adds_no_bias_keeps_its_norm():
    torch.manual_seed(0)
    rows = torch.randn(8, 2, 5, 5)
    done, change = applied(settled(nn.Sequential(Biasless(2, 6, 3), nn.BatchNorm2d(6)), rows), rows)
    assert change == 0 and done.skipped == {
        "1": "the forward pass of 0 adds no bias that the norm could go into"
    }
    assert done.model[0].bias is not None  # as nn.Conv2d had made it


def test_a_bias_that_was_only_given_for_folding_is_taken_back():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 3, bias=False))
    done, _ = applied(settled(layers, rows := torch.randn(8, 2, 7, 7)), rows)
    assert done.touched == ("0",) and done.model[0].bias is not None and done.model[2].bias is None


def test_a_model_without_norms_is_not_even_captured(monkeypatch):
    monkeypatch.setattr("karui.techniques.fold_norm.look", None)
    done, change = applied(nn.Linear(3, 2).eval(), torch.randn(4, 3))
    assert done.touched == () and change == 0
