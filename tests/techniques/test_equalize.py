from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from karui.errors import UsageError
from karui.graph.call import run_all, signature_of
from karui.graph.ranges.table import Range, Table
from karui.techniques import Applied, Given
from karui.techniques.equalize import Equalize


def applied(model: nn.Module, rows: torch.Tensor, *, absorb: bool = False) -> tuple[Applied, float]:
    """What the technique did, and the largest change of the outputs as a share of their scale."""
    signature, arrays = signature_of(model, rows, 1)
    before = run_all(model, signature.style, arrays)[0]
    done = Equalize(absorb=absorb).apply(copy.deepcopy(model), Given(arrays, arrays, signature))
    after = run_all(done.model, signature.style, arrays)[0]
    return done, float(np.abs(after - before).max() / np.abs(before).max())


def uneven(model: nn.Module) -> nn.Module:
    """Channels of very different reach, as depthwise networks have them."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            with torch.no_grad():
                module.weight *= (
                    torch.rand(len(module.weight))
                    .mul(8)
                    .sub(4)
                    .exp()
                    .reshape([-1] + [1] * (module.weight.ndim - 1))
                )
    return model.eval()


def chain(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), *between, nn.Conv2d(6, 4, 3, bias=False))


def start() -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(2, 6, 1), nn.ReLU(inplace=True)


def depthwise() -> nn.Module:
    rest = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    return nn.Sequential(*start(), *rest)


def up() -> nn.Module:
    return nn.Sequential(*start(), nn.ConvTranspose2d(6, 4, 2, 2, groups=2), nn.Conv2d(4, 4, 3))


CHAINS = {
    "relu": (lambda: chain(nn.ReLU()), 1),
    "nothing": (lambda: chain(nn.Identity(), nn.Dropout()), 1),
    "pool": (lambda: chain(nn.LeakyReLU(0.1), nn.MaxPool2d(2, padding=1), nn.Dropout2d()), 1),
    "depthwise": (depthwise, 2),
    "groups": (lambda: nn.Sequential(*start(), nn.Conv2d(6, 8, 3, groups=2)), 1),
    "transposed": (up, 2),
    "flatten": (lambda: nn.Sequential(*start(), nn.Flatten(), nn.Linear(6 * 64, 5)), 1),
    "mean": (lambda: nn.Sequential(*start(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)), 1),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_the_answers_stay(kind):
    torch.manual_seed(0)
    make, pairs = CHAINS[kind]
    done, change = applied(uneven(make()), torch.randn(4, 2, 8, 8))
    assert change < 1e-5
    assert done.facts["pairs"] == pairs and done.facts["absorbed"] == 0


def reach(weight: torch.Tensor, axis: int) -> torch.Tensor:
    return weight.detach().movedim(axis, 0).flatten(1).abs().amax(1)


def test_both_sides_have_the_same_reach():
    torch.manual_seed(0)
    done, _ = applied(uneven(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))), torch.randn(8, 4))
    torch.testing.assert_close(reach(done.model[0].weight, 0), reach(done.model[2].weight, 1))
    assert done.touched == ("0", "2") and set(done.skipped) == {"2"}


@pytest.mark.parametrize("seed", range(4))
def test_random_networks_keep_their_answers(seed):
    torch.manual_seed(seed)
    width, parts, channels = torch.randint(2, 9, (5,)).tolist(), [], 2
    for i, wide in enumerate(width):
        between = [nn.ReLU(), nn.LeakyReLU(), nn.Identity(), nn.MaxPool2d(2, 1)]
        if seed % 2 and i:
            parts.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
        parts += [nn.Conv2d(channels, wide, 1 + 2 * (i % 2), padding=i % 2), between[(seed + i) % 4]]
        channels = wide
    done, change = applied(uneven(nn.Sequential(*parts)), torch.randn(4, 2, 8, 8))
    assert change < 1e-4 and done.facts["pairs"] == (8 if seed % 2 else 4)


class Odd(nn.Module):
    """Pairs that cannot be equalized, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.six, self.normed, self.forked, self.summed, self.left, self.right = (
            nn.Conv2d(4, 4, 1) for _ in range(6)
        )
        self.mixed, self.twice, self.before_twice = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.norm, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.six(x))
        x = self.norm(self.normed(x))
        x = torch.relu(self.forked(x))
        x = self.left(x) + self.right(x)
        x = functional.hardswish(self.summed(x)) + x
        x = self.mixed(x).transpose(2, 1)
        x = self.twice(torch.relu(self.twice(self.before_twice(x))))
        return self.last(x)


def test_other_layers_have_their_reasons():
    torch.manual_seed(0)
    done, change = applied(Odd().eval(), torch.randn(4, 4, 4, 4))
    words = {
        "six": "hardtanh|relu6", "normed": "fold_norm", "forked": "2 layers", "left": "add", "right": "add",
        "summed": "hardswish", "mixed": "mixed", "before_twice": "more than once", "twice": "more than once",
        "last": "answer",
    }  # fmt: skip
    assert set(done.skipped) == set(words) and done.touched == () and change == 0
    for path, word in words.items():
        assert any(one in done.skipped[path] for one in word.split("|")), (path, done.skipped[path])


def test_biases_move_on():
    """Channels whose inputs are nearly always positive: the ReLU does nothing to what moves past it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2, bias=False)).eval()
    nn.init.constant_(model[0].bias, 9.0)
    nn.init.constant_(model[0].bias[:1], -9.0)
    rows = torch.rand(32, 2, 5, 5)
    done, change = applied(model, rows, absorb=True)
    assert done.facts["absorbed"] == 5 and change < 1e-5
    with torch.no_grad():
        largest = [
            torch.relu(one[0](rows)).amax() for one in (model, applied(model, rows)[0].model, done.model)
        ]
    assert largest[2] < 0.5 * largest[1]
    assert done.model[2].bias is not None and model[2].bias is None


def test_biases_stay_where_zeros_are_added_at_the_rim():
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, bias=False)).eval()
    nn.init.constant_(model[0].bias, 9.0)
    done, change = applied(model, torch.rand(32, 2, 5, 5), absorb=True)
    assert done.facts["absorbed"] == 0 and change < 1e-5 and done.model[2].bias is None


def test_rounded_weights_and_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    signature, arrays = signature_of(model, torch.randn(4, 4), 1)
    one = Range(-torch.ones(6), torch.ones(6), 0, 8, "weight", learned=True)
    given = Given(arrays, arrays, signature, ranges=Table({"0.weight": one}))
    assert "rounded already" in Equalize().apply(copy.deepcopy(model), given).skipped["0"]
    given = dataclasses.replace(given, ranges=Table({"2.weight": one}))
    assert "must stay" in Equalize().apply(copy.deepcopy(model), given).skipped["0"]
    with pytest.raises(UsageError, match="samples"):
        Equalize(samples=0).apply(model, given)


def on_one_grid(model: nn.Module, bits: int) -> nn.Module:
    """All weights of a layer on one grid."""
    model, top = copy.deepcopy(model), 2 ** (bits - 1) - 1
    for part in model.parameters():
        if part.ndim > 1:
            scale = part.detach().abs().max() / top
            part.data = (part.data / scale).round() * scale
    return model


@pytest.mark.parametrize("seed", range(3))
def test_one_grid_a_layer_then_fits_all_channels(seed):
    torch.manual_seed(seed)
    rows = torch.randn(16, 2, 8, 8)
    model = uneven(depthwise())
    done, _ = applied(model, rows)
    with torch.no_grad():
        before, after = (
            (on_one_grid(one, 6)(rows) - model(rows)).square().mean() for one in (model, done.model)
        )
    assert after < 0.5 * before, (float(before), float(after))
