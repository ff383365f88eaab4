"""CPUs without VNNI, emulated: where 16-bit sums clip, and that 7-bit weights give back what is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.graph.test_ranges import source_of
from torch import nn

from karui.graph.program import flat
from karui.graph.ranges import profiles
from karui.graph.ranges.program import quantized
from karui.graph.ranges.saturation import Saturating, clipped


def test_pairs_are_clipped_at_16_bits():
    x, weight = torch.tensor([[255.0, 255.0, 1.0]]), torch.tensor([[127.0, 127.0, 5.0], [127.0, -127.0, 0.0]])
    sums, share = clipped(x, weight)
    assert sums.tolist() == [[32767.0 + 5.0, 0.0]]
    assert share == 1 / 4
    assert clipped(x, weight.clamp(-63, 63))[1] == 0.0


class Net(nn.Module):
    """Every input is bright and the weights agree in sign: the worst case for 16-bit sums."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, groups=4)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.grouped(torch.relu(self.conv(x)))).flatten(1))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.conv.weight.abs_()
    return source_of(model, torch.rand(64, 3, 12, 12), tmp_path_factory.mktemp("net"))


def answers(source, saturates: bool) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """The reference, what AVX2 would make of it, and the share of clipped sums by layer."""
    found = quantized(source, profiles.onnxruntime(saturates=saturates), "minmax")
    emulated = Saturating(found.graph)
    x = torch.from_numpy(next(iter(source.probe.values())))
    with torch.no_grad():
        out = flat(emulated.run(x))[0].numpy()
    return found.reference[0], out, {node.name: share for node, share in emulated.shares.items()}


@pytest.mark.gate
def test_saturation_is_predicted_and_the_reduced_range_gives_back_nine_tenths_of_the_loss(source):
    wide, clipped_wide, predicted = answers(source, saturates=False)
    narrow, clipped_narrow, none = answers(source, saturates=True)
    assert len(predicted) == 3 and predicted["conv2d"] > 0.01
    assert set(none.values()) == {0.0}
    np.testing.assert_allclose(clipped_narrow, narrow, atol=1e-3 * np.abs(narrow).max())
    lost = np.square(clipped_wide - wide).mean()
    left = np.square(clipped_narrow - wide).mean()
    assert lost > 0 and left < 0.1 * lost


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_paddings_by_name_are_emulated_too(tmp_path, padding):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, (3, 4), padding=padding, dilation=2), nn.ReLU(), nn.Flatten())
    source = source_of(model.eval(), torch.rand(16, 3, 9, 9), tmp_path)
    narrow, emulated, shares = answers(source, saturates=True)
    assert shares == {"conv2d": 0.0}
    np.testing.assert_allclose(emulated, narrow, atol=1e-3 * np.abs(narrow).max())


def test_where_nothing_is_clipped_the_emulation_is_the_reference(source):
    found = quantized(source, profiles.openvino(saturates=True), "minmax")
    x = torch.from_numpy(next(iter(source.probe.values())))
    with torch.no_grad():
        out = flat(Saturating(found.graph).run(x))[0].numpy()
    np.testing.assert_allclose(out, found.reference[0], atol=1e-3 * np.abs(out).max())
