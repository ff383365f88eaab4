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
from karui.techniques.smooth import Smooth

WIDTH = 8


def applied(
    model: nn.Module, rows: torch.Tensor, ranges: Table | None = None, **options
) -> tuple[Applied, float]:
    """What the technique did, and the largest change of the outputs as a share of their scale."""
    signature, arrays = signature_of(model, rows, 1)
    before = run_all(model, signature.style, arrays)[0]
    done = Smooth(**options).apply(copy.deepcopy(model), Given(arrays, arrays, signature, ranges=ranges))
    after = run_all(done.model, signature.style, arrays)[0]
    return done, float(np.abs(after - before).max() / np.abs(before).max())


def uneven(model: nn.Module) -> nn.Module:
    """Norms that make some channels far larger than others, as trained transformers have them."""
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
            with torch.no_grad():
                module.weight[:2] *= 50
    return model.eval()


class Encoder(nn.Module):
    def __init__(self, *, norm_first: bool, layers: int = 2) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 16, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(1))


def test_norms_before_attention_and_feed_forward():
    torch.manual_seed(0)
    model = uneven(Encoder(norm_first=True))
    done, change = applied(model, torch.randn(16, 5, WIDTH))
    assert change < 1e-5
    norms = [f"encoder.layers.{i}.norm{j}" for i in (0, 1) for j in (1, 2)] + ["encoder.norm"]
    assert list(done.facts["smoothed"]) == norms
    for before, after in done.facts["smoothed"].values():
        assert after < 0.5 * before
    assert set(norms) | {"head", "encoder.layers.0.self_attn", "encoder.layers.1.linear1"} <= set(
        done.touched
    )
    assert "gelu" in done.skipped["encoder.layers.0.linear1"]
    assert "add" in done.skipped["encoder.layers.0.linear2"]


def test_norms_that_a_shortcut_reads_too_stay():
    torch.manual_seed(0)
    model = uneven(Encoder(norm_first=False, layers=1))
    done, change = applied(model, torch.randn(16, 5, WIDTH))
    assert "add" in done.skipped["encoder.layers.0.norm1"] and change < 1e-5
    assert "encoder.layers.0.norm2" in done.skipped  # the last norm reads it
    assert list(done.facts["smoothed"]) == ["encoder.norm"]
    assert torch.equal(done.model.encoder.layers[0].norm1.weight, model.encoder.layers[0].norm1.weight)


class Llama(nn.Module):
    """Norms written by hand and by torch, gated: three readers of one norm, a product on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.rand(WIDTH) * 9), nn.RMSNorm(WIDTH)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.bare, self.last = nn.LayerNorm(WIDTH, elementwise_affine=False), nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
        x = x + self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return self.last(self.bare(self.gate(self.norm(x))[..., :WIDTH]))


def test_other_norms():
    torch.manual_seed(0)
    done, change = applied(uneven(Llama()), torch.randn(16, 5, WIDTH))
    assert change < 1e-5
    assert "no weight" in done.skipped["bare"]
    assert "gate" in done.skipped["norm"]  # called twice


class Gated(Llama):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
        x = x + self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return self.last(self.bare(self.other(self.norm(x))))


def test_all_readers_of_a_norm_together():
    torch.manual_seed(0)
    done, change = applied(uneven(Gated()), torch.randn(16, 5, WIDTH))
    assert change < 1e-5
    assert set(done.facts["smoothed"]) == {"", "norm"}
    assert {"gate", "up", "other", "norm"} <= set(done.touched)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alpha", [0.15, 0.5, 1.0])
def test_layers_before_layers(seed, alpha):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.Linear(5, 4)
    ).eval()
    rows = torch.randn(8, 2, 6, 6)
    done, change = applied(model, rows, alpha=alpha)
    assert change < 1e-5 and set(done.facts["smoothed"]) == {"0", "4"}
    if alpha == 1.0:
        seen = done.model[:4](rows).reshape(8, 6, 4).amax((0, 2))
        torch.testing.assert_close(seen[seen > 0], torch.ones_like(seen[seen > 0]))
    assert applied(model, rows, layers=False)[0].touched == ()


def test_rounded_weights_stay():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)).eval()
    one = Range(-torch.ones(2), torch.ones(2), 0, 8, "weight", learned=True)
    done, change = applied(model, torch.randn(8, 4), Table({"1.weight": one}))
    assert done.touched == () and change == 0 and "rounded already" in done.skipped["0"]


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"alpha": 1.5}, {"samples": 0}])
def test_options_out_of_range(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        applied(nn.Linear(2, 2).eval(), torch.randn(4, 2), **options)


def test_it_needs_data():
    model, rows = nn.Linear(2, 2).eval(), torch.randn(4, 2)
    signature, arrays = signature_of(model, rows, 1)
    with pytest.raises(UsageError, match="calibration data"):
        Smooth().apply(model, dataclasses.replace(Given(arrays, {}, signature)))
