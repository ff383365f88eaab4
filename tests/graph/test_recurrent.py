"""Dynamic INT8 of LSTMs: the weight that disturbs is named, and a rule on it keeps its kernel in float."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from karui.errors import Unsupported
from karui.graph.call import signature_of
from karui.graph.capture import capture
from karui.graph.ranges.program import rows_heard
from karui.numerics import Numerics
from karui.runtimes import Source
from karui.runtimes.onnxruntime import OnnxRuntime
from karui.search.mixed import most_disturbing

LOUD = "lstm.weight_hh_l0"


class Speaker(nn.Module):
    """Two LSTM layers; one recurrent weight is so large that its scale leaves the others little."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 16, 2, batch_first=True), nn.Linear(16, 5)
        with torch.no_grad():
            self.lstm.weight_hh_l0[0, 0] = 40.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0].mean(1))


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    torch.manual_seed(0)
    net, x = Speaker().eval(), torch.randn(64, 12, 6)
    signature, example = signature_of(net, x[:2], 1)
    folder = tmp_path_factory.mktemp("speaker") / "captured"
    signature = capture(net, signature, example, folder)
    with torch.no_grad():
        return folder, signature, {signature.inputs[0].name: x.numpy()}, net(x).numpy()


def built(captured, tmp_path, **rules: str) -> tuple[dict, float]:
    """What runs, and the largest difference from the float model."""
    folder, signature, arrays, answers = captured
    numerics = Numerics("int8_dynamic", tuple(rules.items()))
    home = tmp_path / "built"
    home.mkdir()
    found = OnnxRuntime().build(Source(folder, signature, numerics, arrays, arrays), home)
    outputs = OnnxRuntime().load(home, signature, 1)(arrays)[0]
    return dict(found.executed), float(np.abs(outputs - answers).max())


@pytest.mark.gate
def test_the_recurrent_weight_that_disturbs_most_is_named_first_and_kept_in_float(captured, tmp_path):
    plain, far = built(captured, tmp_path)
    heard = sorted((one["sqnr_db"], one["layer"]) for one in plain["layers"])
    assert heard[0][1] == LOUD and len(heard) == 5
    assert LOUD in most_disturbing(plain)[:2]  # the head does next to no work
    assert plain["int8_macs"] == pytest.approx(1.0, abs=1e-3)
    (tmp_path / "again").mkdir()
    kept, near = built(captured, tmp_path / "again", **{LOUD: "fp32"})
    assert near < far / 5
    runs = {one["layer"]: one["int8"] for one in kept["layers"]}
    assert [name for name, int8 in runs.items() if not int8] == ["lstm.weight_ih_l0", LOUD]
    assert [one["reason"] for one in kept["fallback"]] == ["kept in FP32 by a rule"]
    assert 0 < kept["int8_macs"] < 1


def test_a_rule_that_fits_no_weight_is_an_error(captured, tmp_path):
    with pytest.raises(Unsupported, match=r"no layer fits the rule 'lstm.weight_hh_l7'"):
        built(captured, tmp_path, **{"lstm.weight_hh_l7": "fp32"})


@pytest.mark.parametrize(("shape", "rows"), [((48,), 32), ((3, 224, 224), 6), ((3, 1024, 1024), 4)])
def test_sensitivity_is_heard_on_fewer_samples_where_they_are_large(shape, rows):
    assert rows_heard({"x": np.broadcast_to(np.float32(0), (64, *shape))}) == rows
