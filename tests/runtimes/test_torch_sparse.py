"""Mostly zero linear layers as compressed rows in PyTorch: the same answers, and only where it is faster."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtimes.torch_source import source_of
from torch import nn
from torch.nn import functional

from karui import runtimes
from karui.errors import Unsupported
from karui.graph import csr
from karui.numerics import parse_numerics
from karui.runtimes.torch_eager import LAYERS, TorchEager

SPARSE = TorchEager(sparse=True)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 4, 8]),
    st.integers(1, 3),
    st.booleans(),
    st.floats(0, 1),
)
def test_products_are_those_of_the_dense_weight(rows, columns, block, tokens, biased, zeros):
    torch.manual_seed(0)
    stay = (torch.rand(rows, columns) >= zeros).repeat_interleave(block, 0).repeat_interleave(block, 1)
    outputs, inputs = stay.shape
    weight = torch.randn(outputs, inputs) * stay
    bias = torch.randn(outputs) if biased else None
    multiply = csr.Products([functools.partial(csr.product, csr.compressed(weight, block), bias)])
    for x in (torch.randn(4, inputs), torch.randn(2, tokens, inputs), torch.randn(csr.TILE + 9, inputs)):
        found = multiply(x)
        torch.testing.assert_close(found, functional.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


class Feed(nn.Module):
    """Two wide layers, mostly zero by single weights or by blocks, and a head."""

    def __init__(self, zeros: float, block: int, inputs: int = 64) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(inputs, 2048), nn.Linear(2048, inputs)
        self.head = nn.Linear(inputs, 3)
        with torch.no_grad():
            for layer in (self.wide, self.back):
                stay = torch.rand([n // block for n in layer.weight.shape]) >= zeros
                layer.weight.mul_(stay.repeat_interleave(block, 0).repeat_interleave(block, 1))

    def forward(self, x):
        return self.head(x + self.back(torch.relu(self.wide(x))))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)

    def made(zeros, block=1, inputs=64):
        rows = np.random.default_rng(0).standard_normal((64, inputs)).astype(np.float32)
        return source_of(Feed(zeros, block, inputs).eval(), rows, tmp_path_factory.mktemp("csr"))

    return made


@pytest.mark.gate
@pytest.mark.parametrize("block", [1, 8])
def test_layers_are_chosen_by_their_time_and_answer_as_before(source, tmp_path, block):
    given_ = dataclasses.replace(source(0.98, block, 512), batch=64)  # 64 are too few for CPUs with AVX-512
    built = SPARSE.build(given_, tmp_path)
    assert built.executed["sparse_layers"] >= 1
    assert "as compressed rows: " in built.executed["detail"]
    chosen = json.loads((tmp_path / LAYERS).read_text())
    assert not any("head" in path for path in chosen)
    assert block > 1 or set(chosen.values()) == {1}
    plain = tmp_path / "plain"
    plain.mkdir()
    TorchEager().build(given_, plain)
    for rows in (1, 7, 64):
        x = {name: array[:rows] for name, array in given_.probe.items()}
        one, other = (SPARSE.load(folder, given_.signature, 1)(x)[0] for folder in (tmp_path, plain))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


class Squared(Feed):
    def forward(self, x):
        wide = torch.relu(self.wide(x)) - 0.1
        return self.back(wide * wide)


def test_what_reads_values_twice_is_no_change_of_each_value_by_itself():
    torch.manual_seed(0)
    model, x = Squared(0.9, 1).eval(), torch.randn(300, 64)
    graph = csr.put_in(torch.export.export(model, (x,)).module(), {"wide.weight": 1, "back.weight": 1})
    assert [len(one.steps) for one in graph.modules() if isinstance(one, csr.Products)] == [1, 1]
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 64), (3, 99, 64)])
def test_between_two_products_values_stay_columns(shape):
    torch.manual_seed(0)
    model, x = Feed(0.9, 4).eval(), torch.randn(shape)
    graph = torch.export.export(model, (x,)).module()
    graph = csr.put_in(graph, {"wide.weight": 4, "back.weight": 1})
    [products] = [one for one in graph.modules() if isinstance(one, csr.Products)]
    assert len(products.steps) == 3  # two products, and relu
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)


def test_blocks_are_stored_as_blocks_only_where_most_of_them_are_zero():
    torch.manual_seed(0)
    ones, holes = torch.ones(4, 4), torch.rand(24, 16) >= 0.9
    assert csr.forms(torch.randn(24, 16) * holes) == [1]
    blocks = torch.kron(torch.eye(6), ones)
    assert csr.forms(blocks) == ([1, 4, 8] if csr.mkl() else [1])
    assert csr.forms(torch.zeros(24, 18)) == [1]


@pytest.mark.gate
@pytest.mark.parametrize(("zeros", "reason"), [(0.6, "60% zeros"), (0.1, "no linear layer is mostly zero")])
def test_where_it_is_not_faster_nothing_is_made_and_the_reason_says_so(source, tmp_path, zeros, reason):
    with pytest.raises(Unsupported, match="no layer is faster as a sparse matrix at batch 1") as error:
        SPARSE.build(source(zeros), tmp_path)
    assert reason in error.value.why


def test_half_precision_is_refused():
    assert "FP32 only" in SPARSE.refuses(runtimes.Ask(parse_numerics("bf16")))
