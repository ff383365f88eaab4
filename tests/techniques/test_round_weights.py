from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from karui import host
from karui.errors import Unsupported, UsageError
from karui.graph.call import run_all, signature_of
from karui.graph.capture import capture
from karui.graph.fold import fold_norms
from karui.graph.program import export
from karui.graph.ranges import rounding
from karui.graph.ranges.calibrate import calibrate
from karui.graph.ranges.emit_onnx import constant, emit
from karui.graph.ranges.insert import insert
from karui.graph.ranges.places import Profile
from karui.graph.ranges.profiles import onnxruntime, weight_bits
from karui.graph.ranges.program import quantized
from karui.graph.ranges.table import Range, Table, save_table, signed
from karui.graph.trace import trace
from karui.numerics import Numerics
from karui.runtimes import Source
from karui.techniques import Applied, Given
from karui.techniques.round_weights import Rounding, RoundWeights


def given_for(model: nn.Module, rows: torch.Tensor) -> Given:
    signature, arrays = signature_of(model, rows, 1)
    return Given(arrays, arrays, signature)


def applied(model: nn.Module, rows: torch.Tensor, **options) -> Applied:
    torch.manual_seed(1)
    return RoundWeights(**options).apply(copy.deepcopy(model), given_for(model, rows))


def change(model: nn.Module, done: Applied, rows: torch.Tensor) -> float:
    given = given_for(model, rows)
    before, after = (run_all(m, given.signature.style, given.inputs)[0] for m in (model, done.model))
    return float(((after - before) ** 2).mean() / before.var())


class Net(nn.Module):
    """Every kind of layer, with and without bias and norm, depthwise, in groups, dilated, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2)
        self.line = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.grouped(torch.relu(self.depthwise(x))))
        x = torch.relu(self.up(x)).mean((2, 3))
        return self.head(torch.relu(self.line(torch.relu(self.line(x)))))


@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_one_pass_gives_what_a_pass_for_each_layer_gives(method, monkeypatch):
    torch.manual_seed(0)
    rows = torch.randn(32, 2, 8, 8)
    model = Net()
    model(rows)
    model.eval()
    one = applied(model, rows, method=method, bits=4, rounds=50)
    monkeypatch.setattr("karui.techniques.round_weights.HELD_BYTES", 0)
    monkeypatch.setattr(Rounding, "sweep", None)
    many = applied(model, rows, method=method, bits=4, rounds=50)
    assert one.touched == many.touched and one.skipped == many.skipped
    for name, part in one.model.named_parameters():
        torch.testing.assert_close(part, many.model.get_parameter(name), rtol=1e-5, atol=1e-5)


def net(rows: torch.Tensor) -> nn.Module:
    model = Net()
    model(rows)
    nn.init.uniform_(model.norm.weight, -2.0, 2.0)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(64, 2, 6, 6)


@pytest.mark.parametrize("method", ["nearest", "gptq", "adaround"])
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_weights_lie_on_the_grid_that_is_told(images, method, bits):
    done = applied(net(images), images, method=method, bits=bits, rounds=30)
    assert set(done.touched) == {"first", "depthwise", "grouped", "up", "line", "head"}
    for path, one in done.ranges.items():
        weight = done.model.get_parameter(path)
        assert (one.learned, one.bits, one.role, one.axis) == (
            True,
            bits,
            "weight",
            1 if path == "up.weight" else 0,
        )
        scale, zero = one.on(signed(bits))
        steps = scale.reshape([-1 if i == one.axis else 1 for i in range(weight.ndim)])
        q = (weight / steps).round()
        assert not zero.any() and q.abs().max() <= signed(bits).high
        assert torch.equal(q * steps, weight)


def emitted(model: nn.Module, done: Applied, given: Given, profile: Profile, folder) -> tuple[dict, dict]:
    """Stored integers by weight, and the same as the technique left them."""
    signature = capture(done.model, given.signature, given.inputs, folder)
    save_table(done.ranges, folder)
    source = Source(folder, signature, Numerics("int8"), given.inputs, given.inputs)
    program = export(quantized(source, profile, "minmax").graph, signature, given.inputs)
    stored, known = emit(program, signature, 20, profile).graph.initializers, done.ranges
    found = {
        path: constant(value)
        for path in known
        for name, value in stored.items()
        if name.startswith(f"{path}_quantized")
    }
    expected = {}
    for path, one in known.items():
        scale = one.on(signed(one.bits))[0]
        weight = done.model.get_parameter(path)
        expected[path] = (
            weight / scale.reshape([-1 if i == one.axis else 1 for i in range(weight.ndim)])
        ).round()
    return found, expected


@pytest.mark.parametrize("bits", [4, 7])
def test_the_runtime_stores_the_same_integers(images, tmp_path, bits):
    model = net(images)
    done = applied(model, images, bits=bits, rounds=20)
    found, expected = emitted(model, done, given_for(model, images), onnxruntime(saturates=True), tmp_path)
    assert {"first.weight", "depthwise.weight", "grouped.weight", "up.weight"} <= set(found)
    for path, integers in found.items():
        wanted = expected[path].detach().numpy()
        if path == "first.weight":  # negative factors of the norm turn the signs
            integers, wanted = np.abs(integers), np.abs(wanted)
        if integers.shape != wanted.shape:
            wanted = wanted.T
        np.testing.assert_array_equal(integers, wanted, err_msg=path)


def test_too_many_bits_for_the_kernels_are_refused(images, tmp_path):
    model = net(images)
    done = applied(model, images, method="nearest", bits=8)
    with pytest.raises(Unsupported, match="was rounded to 8 bits") as error:
        emitted(model, done, given_for(model, images), onnxruntime(saturates=True), tmp_path)
    assert "7 bits" in error.value.fix


def test_bits_are_those_of_the_cpu_where_the_model_will_run(images):
    assert applied(net(images), images, method="nearest").facts["bits"] == weight_bits(host.flags())
    for flags, bits in (({"avx2"}, 7), ({"avx2", "avx_vnni"}, 8), ({"asimd"}, 8)):
        given = dataclasses.replace(given_for(net(images), images), flags=frozenset(flags))
        done = RoundWeights(method="nearest").apply(net(images), given)
        assert done.facts["bits"] == weight_bits(given.flags) == bits


@pytest.mark.parametrize("seed", range(3))
def test_learned_rounding_beats_nearest(seed):
    torch.manual_seed(seed)
    images = torch.randn(128, 2, 6, 6).cumsum(3)  # neighbours that go together, as in pictures
    model = net(images)
    errors = {
        method: change(model, applied(model, images, method=method, bits=3, rounds=100), images)
        for method in ("nearest", "gptq", "adaround")
    }
    assert errors["gptq"] < 0.7 * errors["nearest"]
    assert errors["adaround"] < 0.7 * errors["nearest"]


def test_matrices_are_rounded_well():
    torch.manual_seed(0)
    x = torch.randn(500, 40, dtype=torch.float64) @ torch.randn(40, 40, dtype=torch.float64)
    weights, H, grid = torch.randn(8, 40, dtype=torch.float64), x.T @ x, signed(4)
    scale = weights.abs().amax(1, keepdim=True) / grid.high
    usual, greedy, learned = (
        rounding.loss(q, weights, scale, H).sum()
        for q in (
            rounding.nearest(weights, scale, grid),
            rounding.gptq(weights, scale, grid, H),
            rounding.adaround(weights[None], scale[None], grid, H[None], 300)[0],
        )
    )
    assert greedy < 0.5 * usual and learned < 0.5 * usual


def test_weights_on_the_grid_stay_and_dead_inputs_do_no_harm():
    grid, scale = signed(4), torch.full((2, 1), 0.5, dtype=torch.float64)
    weights = torch.tensor([[0.5, -1.0, 3.5], [0.0, 2.0, -0.5]], dtype=torch.float64)
    for H in (torch.eye(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)):
        learned = rounding.adaround(weights[None], scale[None], grid, H[None], 50)[0]
        for q in (rounding.gptq(weights, scale, grid, H), learned):
            assert torch.equal(q * scale, weights)


@pytest.mark.parametrize("method", ["gptq", "adaround", "nearest"])
def test_pruned_weights_stay_pruned(images, method):
    model = net(images)
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    with torch.no_grad():
        for p in weights.values():
            p.mul_(torch.rand_like(p) < 0.5)
    done = applied(model, images, method=method, bits=4, rounds=30)
    for name, p in weights.items():
        rounded = done.model.get_parameter(name)
        assert bool((rounded[p == 0] == 0).all())
        assert bool((rounded != 0).any())


def test_biases_are_given_where_they_pay_and_taken_back_where_not(images):
    model = net(images)
    done = applied(model, images, method="gptq", bits=3)
    assert done.model.first.bias is not None and done.model.head.bias is not None
    assert applied(model, images, method="gptq", bits=3, bias=False).model.head.bias is None
    assert applied(model, images, method="nearest", bits=3).model.head.bias is None
    assert model.head.bias is None


class Tied(nn.Module):
    """A weight under two names, one read in another way as well, one with two biases, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.own = nn.Parameter(torch.randn(4, 4))

    def forward(self, kinds: torch.Tensor) -> torch.Tensor:
        return self.out(self.two(torch.relu(self.one(self.embed(kinds)))) @ self.own)


def test_what_cannot_be_rounded_has_its_reason():
    torch.manual_seed(0)
    kinds = torch.randint(0, 5, (40,))
    model = Tied().eval()
    done = applied(model, kinds, bits=4, rounds=20)
    assert done.touched in (("one",), ("two",)) and "another way" in " ".join(done.skipped.values())
    assert torch.equal(done.model.embed.weight, model.embed.weight)
    assert done.model.two.weight is done.model.one.weight


def test_what_was_rounded_before_stays(images):
    model = net(images)
    first = applied(model, images, method="nearest", bits=4)
    given = dataclasses.replace(given_for(model, images), ranges=first.ranges)
    again = RoundWeights(bits=3).apply(copy.deepcopy(first.model), given)
    assert again.touched == () and "already" in again.skipped["line"]
    assert torch.equal(again.model.line.weight, first.model.line.weight)
    given = dataclasses.replace(given, ranges=Table({"line.weight": Range(torch.zeros(6), torch.ones(6), 0)}))
    assert "line" in RoundWeights(method="nearest").apply(copy.deepcopy(model), given).touched


def test_a_model_with_a_fixed_batch():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.line(x.reshape(4, 3))

    rows = torch.randn(4, 3)
    signature, arrays = signature_of(Fixed().eval(), rows, 4)
    for count in (3, 4, 9):  # fewer than a batch, one, and two
        many = {name: np.resize(array, (count, 3)) for name, array in arrays.items()}
        done = RoundWeights(bits=4, rounds=5).apply(Fixed().eval(), Given(arrays, many, signature))
        assert done.touched == ("line",)


@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_dead_units_and_one_sample(method):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    nn.init.constant_(model[0].weight, 0.0)
    nn.init.constant_(model[0].bias, -1.0)
    done = applied(model, torch.randn(1, 3), method=method, bits=4, rounds=5)
    assert torch.equal(done.model(torch.zeros(1, 3)), model(torch.zeros(1, 3)))


def test_inputs_that_are_not_finite_are_refused():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.line(x.masked_fill(x < 0, -torch.inf)).clamp(-1, 1)

    with pytest.raises(Unsupported, match="not finite"):
        RoundWeights(bits=4).apply(Masked().eval(), given_for(nn.Identity(), torch.randn(4, 3)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 0}, "bits"),
        ({"bits": 1}, "bits"),
        ({"bits": 9}, "bits"),
        ({"rounds": 0}, "rounds"),
        ({"samples": 0}, "samples"),
    ],
)
def test_options_out_of_range(images, options, words):
    with pytest.raises(UsageError, match=words):
        applied(net(images), images, **options)


def test_learning_needs_data(images):
    model = net(images)
    given = dataclasses.replace(given_for(model, images), calibrate={})
    with pytest.raises(UsageError, match="calibration data"):
        RoundWeights().apply(model, given)
    assert RoundWeights(method="nearest").apply(model, given).touched


def test_folding_keeps_the_graph_that_was_rounded(images):
    """Norms are folded after the capture: the answers with fake_quant are those of the rounded model."""
    model = net(images)
    done = applied(model, images, bits=4, rounds=20)
    given = given_for(model, images)
    wanted = run_all(done.model, given.signature.style, given.inputs)[0]
    graph = trace(done.model, given.signature, given.inputs).graph
    with torch.no_grad():
        factors = fold_norms(graph)
        assert list(factors) == ["model.first.weight"]
        ranges = done.ranges.with_(
            {"first.weight": done.ranges["first.weight"].times(factors["model.first.weight"])}
        )
        profile = Profile(weights=signed(7))
        table = calibrate(graph, [(images,)], known=ranges)
        insert(
            graph,
            table,
            dataclasses.replace(profile, activations=dataclasses.replace(profile.activations, high=2**20)),
            Numerics("int8"),
        )
        found = graph(images)
    found = found[0] if isinstance(found, (tuple, list)) else found
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)
