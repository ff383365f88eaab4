"""How much is computed to prune channels: bounded, kept when a run is killed, of use in every convolution."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import karui
from karui.graph import rerun
from karui.graph.inspect import state_digest

torch.set_num_threads(1)
ROWS = 512


class Residuals(nn.Module):
    """As many blocks as wanted, each with an inner width; sums written in place."""

    def __init__(self, blocks: int, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        for first, second in zip(self.first, self.second):
            y = second(first(x).relu_())
            y += x
            x = y.relu_()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def images():
    """Of low rank, so that channels can stand in for each other."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((6, 3, 8, 8))
    return np.einsum("nk,kchw->nchw", rng.standard_normal((ROWS, 6)), basis).astype(np.float32)


def task_of(model, images):
    return karui.Task(model, inputs=torch.from_numpy(images[:4]), calibrate=[torch.from_numpy(images)])


def nodes_run(model, images, recipe, monkeypatch):
    """Operations that passes over the calibration data computed."""
    made = []
    start = rerun.Rerun.__init__

    def remembered(self, *args):
        start(self, *args)
        made.append(self)

    monkeypatch.setattr(rerun.Rerun, "__init__", remembered)
    karui.prune(task_of(model, images), recipe)
    monkeypatch.undo()
    return sum(one.runs for one in made)


@pytest.mark.gate
@pytest.mark.parametrize("recipe", ["prune_channels:ratio=0.5", "prune_channels:macs=0.5"])
def test_work_for_a_layer_grows_less_than_with_the_depth(images, monkeypatch, recipe):
    """With every pass from the start, twice as many blocks took four times the operations."""
    torch.manual_seed(0)
    few, many = (nodes_run(Residuals(n).eval(), images, recipe, monkeypatch) for n in (4, 8))
    assert few > 0
    assert many < (2.5 if "ratio" in recipe else 3.6) * few


LAYERS = {
    "transposed 2d": ((3, 6, 6), lambda n: nn.ConvTranspose2d(n, 4, 3, stride=2), nn.Conv2d(3, 24, 3)),
    "transposed 1d": ((3, 20), lambda n: nn.ConvTranspose1d(n, 4, 4, stride=2), nn.Conv1d(3, 24, 3)),
    "3d": ((3, 5, 5, 5), lambda n: nn.Conv3d(n, 4, 2), nn.Conv3d(3, 24, 2)),
    "transposed 3d": ((3, 4, 4, 4), lambda n: nn.ConvTranspose3d(n, 4, 2, stride=2), nn.Conv3d(3, 24, 2)),
    "same": ((3, 9, 9), lambda n: nn.Conv2d(n, 4, 3, padding="same"), nn.Conv2d(3, 24, 3)),
}


@pytest.mark.gate
@pytest.mark.parametrize("name", LAYERS)
def test_every_convolution_takes_over_from_what_goes(name):
    """24 channels that hold little more than 12: half of them go, and refitted readers lose far less."""
    shape, reader, first = LAYERS[name]
    torch.manual_seed(0)
    with torch.no_grad():
        first.weight[12:] = first.weight[:12] + 0.01 * torch.randn_like(first.weight[:12])
        first.bias[12:] = first.bias[:12]
    net = nn.Sequential(first, nn.ReLU(), reader(24)).eval()
    x = torch.randn(64, *shape)
    lost = {}
    for how in ("importance=ln,compensate=false", "importance=obs"):
        made = karui.apply(f"prune_channels:ratio=0.5,{how}", net, inputs=x[:4], calibrate=[x])
        assert made.facts["cut_error"] < 1e-5
        assert len(made.model[0].weight) == 12
        with torch.no_grad():
            lost[how] = float((made.model(x) - net(x)).square().mean() / net(x).var())
    bare, repaired = lost.values()
    assert repaired < 0.02 * bare


class Killed(Exception):
    """In the middle of a measurement."""


@pytest.mark.gate
def test_what_was_measured_before_a_kill_is_not_measured_again(images, tmp_path, monkeypatch):
    from karui.graph import sensitivity

    torch.manual_seed(0)
    model = Residuals(2).eval()
    measured, real = [], sensitivity.curve

    def counted(*args):
        measured.append(args[1].name)
        if len(measured) == stop:
            raise Killed
        return real(*args)

    monkeypatch.setattr(sensitivity, "curve", counted)

    def run(folder, share=0.5):
        return karui.prune(task_of(model, images), f"prune_channels:macs={share}", checkpoints=folder)

    stop = 0
    whole = run(None)
    groups, measured[:] = len(measured), []
    stop = groups
    with pytest.raises(Killed):
        run(tmp_path / "known")
    with (tmp_path / "known" / "sensitivity.jsonl").open("a") as file:
        file.write('{"half a li')
    stop, measured[:] = 0, []
    again = run(tmp_path / "known")
    assert len(measured) == 1 < groups
    assert state_digest(again.model) == state_digest(whole.model)
    assert again.facts["kept"] == whole.facts["kept"]
    other = run(tmp_path / "known", 0.75)
    assert len(measured) == 1  # another goal, nothing to measure
    assert other.facts["macs"][1] > again.facts["macs"][1]
    with torch.no_grad():
        changed = copy.deepcopy(model)
        changed.stem.weight[0, 0, 0, 0] += 1
    karui.prune(task_of(changed, images), "prune_channels:macs=0.5", checkpoints=tmp_path / "known")
    assert len(measured) == 1 + groups  # other weights are another model
