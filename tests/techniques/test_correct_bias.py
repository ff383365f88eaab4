from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from karui import host
from karui.errors import UsageError
from karui.graph.call import run_all, signature_of
from karui.graph.ranges.profiles import weight_bits
from karui.graph.ranges.table import Range, Table
from karui.graph.trace import Walk
from karui.techniques import Given
from karui.techniques.correct_bias import CorrectBias, Correcting


class Net(nn.Module):
    """(n, 2, 6, 6) -> (n, 3); a layer without bias before a norm, one called twice, one with no place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.up, self.line, self.head = nn.ConvTranspose2d(8, 6, 2, 2), nn.Linear(6, 6), nn.Linear(6, 3)
        self.own = nn.Parameter(torch.eye(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.up(torch.relu(self.norm(self.first(x))))).mean((2, 3))
        x = self.head(torch.relu(self.line(torch.relu(self.line(x)))))
        return nn.functional.linear(x, self.own)


def net(rows: torch.Tensor) -> nn.Module:
    model = Net()
    model(rows)
    return model.eval()


def given_for(model: nn.Module, rows: torch.Tensor) -> Given:
    signature, arrays = signature_of(model, rows, 1)
    return Given(arrays, arrays, signature)


def to_nearest(model: nn.Module, bits: int) -> nn.Module:
    """Weights of each output at their extremes, as an INT8 runtime rounds them."""
    model, top = copy.deepcopy(model), 2 ** (bits - 1) - 1
    for name, part in model.named_parameters():
        if part.ndim > 1:
            axes = [i for i in range(part.ndim) if i != (1 if name == "up.weight" else 0)]
            scale = part.detach().abs().amax(axes, keepdim=True) / top
            part.data = (part.data / scale).round() * scale
    return model


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [3, 4])
def test_means_of_the_rounded_model_are_those_of_the_float_model(seed, bits):
    torch.manual_seed(seed)
    rows = torch.randn(64, 2, 6, 6)
    model, given = net(rows), given_for(net(rows), rows)
    done = CorrectBias(bits=bits, activations=False).apply(copy.deepcopy(model), given)
    wanted, plain, found = (
        torch.tensor(run_all(m, given.signature.style, given.inputs)[0])
        for m in (model, to_nearest(model, bits), to_nearest(done.model, bits))
    )
    assert (found.mean(0) - wanted.mean(0)).abs().max() < 0.3 * (plain.mean(0) - wanted.mean(0)).abs().max()
    assert (found - wanted).square().mean() < (plain - wanted).square().mean()
    assert done.model.first.bias is not None and model.first.bias is None
    for name, part in model.named_parameters():
        if part.ndim > 1:
            assert torch.equal(part, done.model.get_parameter(name))


def test_one_pass_gives_what_a_pass_for_each_layer_gives(monkeypatch):
    torch.manual_seed(0)
    rows = torch.randn(64, 2, 6, 6)
    given = given_for(net(rows), rows)
    torch.manual_seed(0)
    model = net(rows)
    one = CorrectBias(bits=4).apply(copy.deepcopy(model), given)
    monkeypatch.setattr("karui.techniques.correct_bias.HELD_BYTES", 0)
    monkeypatch.setattr(Correcting, "sweep", None)
    many = CorrectBias(bits=4).apply(copy.deepcopy(model), given)
    assert one.touched == many.touched
    for name, part in one.model.named_parameters():
        torch.testing.assert_close(part, many.model.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_the_passes_do_not_grow_with_the_layers(monkeypatch):
    rows, count = torch.randn(32, 4), []
    whole = Walk.steps
    monkeypatch.setattr(Walk, "steps", lambda walk, *inputs: count.append(1) or whole(walk, *inputs))
    found = []
    for depth in (2, 8):
        count.clear()
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth))).eval()
        assert len(CorrectBias(bits=3).apply(model, given_for(model, rows)).touched) == depth
        found.append(len(count))
    assert found[0] == found[1]


def test_what_is_told():
    torch.manual_seed(0)
    rows = torch.randn(32, 2, 6, 6)
    done = CorrectBias().apply(net(rows), given_for(net(rows), rows))
    assert done.touched == ("first", "head", "line", "up")
    assert done.facts["bits"] == weight_bits(host.flags()) and done.facts["corrected"] == 4
    assert list(done.skipped) == [""] and "no place" in done.skipped[""]


def test_weights_on_the_grid_need_no_correction():
    torch.manual_seed(0)
    rows = torch.randn(32, 4)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)).eval()
    for i in (0, 2):
        weight = model[i].weight.data
        weight.copy_((weight / weight.abs().max() * 7).round())
        weight[:, 0] = 7.0
    ranges = {
        f"{i}.weight": Range(torch.full((n,), -7.0), torch.full((n,), 7.0), 0, 4, "weight", learned=True)
        for i, n in ((0, 3), (2, 2))
    }
    given = dataclasses.replace(given_for(model, rows), ranges=Table(ranges))
    done = CorrectBias(activations=False).apply(copy.deepcopy(model), given)
    assert done.touched == () and done.model[2].bias is None
    given = dataclasses.replace(given, ranges=None)
    assert CorrectBias(bits=2, activations=False).apply(copy.deepcopy(model), given).touched


@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 9}, {"samples": 0}])
def test_options_out_of_range(options):
    model, rows = nn.Linear(2, 2).eval(), torch.randn(4, 2)
    with pytest.raises(UsageError, match=next(iter(options))):
        CorrectBias(**options).apply(model, given_for(model, rows))


def test_it_needs_data():
    model, rows = nn.Linear(2, 2).eval(), torch.randn(4, 2)
    with pytest.raises(UsageError, match="calibration data"):
        CorrectBias().apply(model, dataclasses.replace(given_for(model, rows), calibrate={}))
