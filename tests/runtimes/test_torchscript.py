from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.runtimes.torch_source import answers_of, images, rows_of, source_of
from torch import nn

from karui.demo.networks import LstmClassifier, TinyEncoder
from karui.errors import BuildFailed
from karui.numerics import parse_numerics
from karui.recipe import parse_named
from karui.runtimes import Ask, load, torchscript

script = load(parse_named("torchscript"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", [LstmClassifier, TinyEncoder])
def test_frozen_recurrent_and_attention_networks_are_right_at_every_batch(network, precision, tmp_path):
    torch.manual_seed(0)
    model = network().eval()
    given = source_of(model, images(side=28), tmp_path, precision)
    (tmp_path / "artifact").mkdir()
    built = script.build(given, tmp_path / "artifact")
    assert built.executed["frozen"] is True
    predict = script.load(tmp_path / "artifact", given.signature, 1)
    wanted = answers_of(model, given)
    for size in (1, 8, 64, 1):
        one, two = predict(rows_of(given, size))[0].copy(), predict(rows_of(given, size))[0]
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, wanted[:size], atol=1e-5 if precision == "fp32" else 0.01)


def small(tmp_path):
    given = source_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), images(), tmp_path)
    (tmp_path / "artifact").mkdir()
    return given


def test_a_freeze_that_changes_the_outputs_is_not_shipped(tmp_path, monkeypatch):
    given = small(tmp_path)
    monkeypatch.setattr(torchscript, "distance", lambda before, after, rows: 0.5)
    built = script.build(given, tmp_path / "artifact")
    assert "not frozen (freezing changed the outputs by 0.5" in built.executed["detail"]
    assert (tmp_path / "artifact/model.pt").read_bytes() == (tmp_path / "traced.pt").read_bytes()


def test_a_freeze_that_fails_is_not_shipped(tmp_path, monkeypatch):
    def fails(module):
        raise RuntimeError("cannot freeze this")

    given = small(tmp_path)
    monkeypatch.setattr(torch.jit, "freeze", fails)
    assert "cannot freeze this" in script.build(given, tmp_path / "artifact").executed["detail"]
    assert script.load(tmp_path / "artifact", given.signature, 1)(rows_of(given, 2))[0].shape == (2, 3)


def test_freezing_can_be_left_out(tmp_path):
    given = small(tmp_path)
    built = load(parse_named("torchscript:freeze=false")).build(given, tmp_path / "artifact")
    assert built.executed["frozen"] is False


def test_no_trace_is_a_failed_build(tmp_path):
    given = small(tmp_path)
    (tmp_path / "traced.pt").unlink()
    with pytest.raises(BuildFailed, match="no TorchScript trace"):
        script.build(given, tmp_path / "artifact")


def test_what_is_refused():
    assert [script.refuses(Ask(parse_numerics(p))) for p in ("fp32", "bf16", "fp16")] == [None] * 3
    assert "INT8" in script.refuses(Ask(parse_numerics("int8")))
    assert "one precision" in script.refuses(Ask(parse_numerics("fp32[a=bf16]")))
    assert "ONNX" in script.refuses(Ask(parse_numerics("fp32"), form="onnx"))
