"""INT8 weights packed by their zeros in OpenVINO: refused without Intel AMX, the same answers with it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tests.runtimes.torch_source import source_of
from torch import nn

from karui import host, runtimes
from karui.errors import Unsupported
from karui.graph.ov_sparse import RATES, fastest, packed_layers
from karui.numerics import parse_numerics
from karui.runtimes.openvino import OpenVino, compiled_from

SPARSE = OpenVino(sparse=True)
amx = pytest.mark.skipif("amx_int8" not in host.flags(), reason="this CPU has no AMX")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two layers, nine of ten weights of the first zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(256, 256) >= 0.9)
    rows = np.random.default_rng(0).standard_normal((32, 256)).astype(np.float32)
    return source_of(model, rows, tmp_path_factory.mktemp("sparse"), "int8")


@pytest.fixture(scope="module")
def dense(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    OpenVino().build(source, folder)
    return folder


@pytest.mark.gate
@pytest.mark.parametrize(
    ("precision", "flags"),
    [("int8", ("avx512_vnni",)), ("fp32", ("amx_int8",)), ("int4_weights", ("amx_int8",))],
)
def test_it_is_refused_without_amx_and_in_other_precisions(precision, flags):
    ask = runtimes.Ask(parse_numerics(precision), layers={"Linear": 1}, flags=flags)
    assert "INT8 only, on CPUs with Intel AMX" in SPARSE.refuses(ask)


def test_it_is_taken_with_amx():
    ask = runtimes.Ask(parse_numerics("int8"), layers={"Linear": 1}, flags=("amx_int8",))
    assert SPARSE.refuses(ask) is None


@pytest.mark.gate
def test_answers_at_a_pinned_rate_are_those_of_the_dense_model(source, dense, tmp_path):
    """On every CPU; those with AMX also pack the layer."""
    OpenVino().build(source, tmp_path)
    pinned = tmp_path / "openvino.json"
    pinned.write_text(json.dumps(json.loads(pinned.read_text()) | {"sparse_rate": RATES[0]}))
    found = [OpenVino().load(folder, source.signature, 1)(source.probe)[0] for folder in (tmp_path, dense)]
    np.testing.assert_array_equal(*found)


@amx
def test_only_layers_with_enough_zeros_are_packed(source, dense):
    for rate, layers in ((0.5, 1), (0.95, 0), (1.0, 0)):
        compiled = compiled_from(dense, 1, {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": rate})
        compiled(dict(source.probe))
        assert packed_layers(compiled) == layers


@amx
def test_the_rate_is_pinned_where_it_is_faster_and_else_the_reason_is_told(source, tmp_path):
    try:
        built = SPARSE.build(dataclasses.replace(source, batch=1), tmp_path)
    except Unsupported as error:
        assert "not faster with its weights packed by their zeros at batch 1" in str(error)
        assert "x with 1 packed" in error.why
    else:
        assert built.executed["sparse_layers"] == 1
        assert "1 product(s) packed by their zeros" in built.executed["detail"]
        assert json.loads((tmp_path / "openvino.json").read_text())["sparse_rate"] in RATES


@pytest.mark.gate
def test_where_openvino_packs_nothing_it_says_so(source, dense):
    def open_dense(rate: float):
        return compiled_from(dense, 1)

    with pytest.raises(Unsupported, match="at batch 7") as error:
        fastest(open_dense, lambda compiled: lambda: compiled(dict(source.probe)), 7)
    assert error.value.why == "OpenVINO packs none of its products"
