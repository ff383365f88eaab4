"""prune_weights: as many zeros as asked for, where they may be, in plain parameters; the others take over."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import karui
from karui.errors import UsageError
from karui.graph.inspect import private_copy, state_digest
from karui.graph.patterns import follows, parse_pattern

torch.set_num_threads(1)


class Net(nn.Module):
    """Convolutions with and without groups and biases, a batch norm, a residual sum, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.point = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 6)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.point(torch.relu(self.depth(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def data():
    """Images of low rank, so that weights can stand in for each other."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((8, 4, 6, 6))
    return np.einsum("nk,kchw->nchw", rng.standard_normal((256, 8)), basis).astype(np.float32)


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    net = Net().train()
    with torch.no_grad():
        for _ in range(10):
            net(torch.from_numpy(data))
    return net.eval()


def prune(model, data, options=""):
    text = f"prune_weights:{options}" if options else "prune_weights"
    return karui.apply(text, model, inputs=torch.from_numpy(data[:4]), calibrate=[torch.from_numpy(data)])


def weights(model):
    return {name: p for name, p in model.named_parameters() if p.ndim > 1}


def zeros(model):
    found = weights(model).values()
    return sum(int((p == 0).sum()) for p in found) / sum(p.numel() for p in found)


@torch.no_grad()
def moved(one, other, data):
    x = torch.from_numpy(data)
    return float((one(x) - other(x)).square().mean() / other(x).var())


@pytest.mark.gate
@pytest.mark.parametrize("options", ["", "importance=l1", "scope=layer", "importance=l2,compensate=false"])
def test_four_fifths_are_plain_zeros_and_nothing_else_changes(model, data, options):
    before = state_digest(model)
    found = prune(model, data, options)
    assert zeros(found.model) == pytest.approx(0.8, abs=0.01)
    assert found.facts["zeros"] == pytest.approx(zeros(found.model))
    assert type(found.model) is Net
    state = found.model.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == {
        name: (t.shape, t.dtype) for name, t in model.state_dict().items()
    }
    assert not any(part._forward_pre_hooks for part in found.model.modules())
    Net().load_state_dict(copy.deepcopy(found.model).state_dict())
    assert state_digest(model) == before
    assert set(found.touched) == {"stem", "depth", "point", "head"}


@pytest.mark.parametrize("options", ["", "importance=l1,compensate=false", "importance=l1"])
def test_zeros_have_no_sign(model, data, options):
    found = prune(model, data, options).model
    assert not any(bool(torch.signbit(p[p == 0]).any()) for p in weights(found).values())


def test_a_model_without_such_weights_is_left_as_it_is(data):
    class Bare(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) * 2

    found = prune(Bare().eval(), data)
    assert not found.touched
    assert "no weight" in found.skipped["the model"]


def test_weights_in_buffers_get_zeros_too(data):
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("matrix", torch.randn(8, 4))

        def forward(self, x):
            return nn.functional.linear(x.mean((2, 3)), self.matrix)

    found = prune(Stored().eval(), data, "sparsity=0.5")
    assert float((found.model.matrix == 0).double().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.gate
def test_what_stays_takes_over(model, data):
    alone = prune(model, data, "importance=l2,compensate=false").model
    fitted = prune(model, data, "importance=l2").model
    best = prune(model, data).model
    assert moved(fitted, model, data) < 0.5 * moved(alone, model, data)
    assert moved(best, model, data) < 0.7 * moved(fitted, model, data)


def test_shares_follow_sensitivity_and_both_are_told(model, data):
    found = prune(model, data, "sparsity=0.7")
    assert set(found.facts["sensitivity"]) == set(found.facts["kept"]) == set(weights(model))
    shares = {name: float((p == 0).double().mean()) for name, p in weights(found.model).items()}
    assert max(shares.values()) - min(shares.values()) > 0.1
    assert found.facts["kept"]["stem.weight"] == f"{int((found.model.stem.weight != 0).sum())} of 576"


@pytest.mark.gate
@pytest.mark.parametrize("text", ["2:4", "1:4", "2x2", "kernel", "row", "column"])
def test_patterns_hold_in_every_weight_that_can_follow(model, data, text):
    found = prune(model, data, f'pattern="{text}"')
    pattern = parse_pattern(text)
    touched = [found.model.get_submodule(name).weight for name in found.touched]
    assert touched and all(follows(weight, 0, pattern) for weight in touched)
    if pattern.m:
        assert all(float((w == 0).double().mean()) == pattern.zeros for w in touched)
    if text in ("kernel", "row", "column"):
        assert "no kernel" in found.skipped["head"]


def test_only_the_named_layers_change(model, data):
    found = prune(model, data, 'layers=["point","head.weight"],scope=layer,sparsity=0.5')
    assert set(found.touched) == {"point", "head"}
    found = prune(model, data, 'protect=["st*"]')
    assert "stem" not in found.touched
    assert found.skipped["stem"] == "it is protected"
    torch.testing.assert_close(found.model.stem.weight, model.stem.weight, rtol=0, atol=0)


def test_amount_counts_what_is_not_zero_yet(model, data):
    half = prune(model, data, "sparsity=0.5").model
    again = prune(half, data, "amount=0.5").model
    assert zeros(again) == pytest.approx(0.75, abs=0.01)
    for name, weight in weights(half).items():
        assert bool((weights(again)[name][weight == 0] == 0).all())
    total = sum(p.numel() for p in weights(model).values())
    assert zeros(prune(model, data, "amount=200,importance=l1").model) == pytest.approx(200 / total, abs=0.01)


def test_random_choice_is_that_of_its_seed(model, data):
    one, again, other = (
        prune(model, data, f"importance=random,compensate=false,seed={seed}").model for seed in (1, 1, 2)
    )
    assert state_digest(one) == state_digest(again) != state_digest(other)


def test_taylor_looks_at_gradients(model, data):
    found = prune(model, data, "importance=taylor,compensate=false")
    assert zeros(found.model) == pytest.approx(0.8, abs=0.01)


class Odd(nn.Module):
    """Tied weights, an LSTM, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(4, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.one = nn.Linear(8, 8)
        self.two = nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def forward(self, x):
        x = self.lstm(self.up(x).transpose(1, 2))[0][:, -1]
        return self.two(torch.relu(self.one(x)))


def test_tied_recurrent_and_transposed_weights_get_zeros_too():
    torch.manual_seed(0)
    model, data = Odd().eval(), np.random.default_rng(0).standard_normal((64, 4, 5)).astype(np.float32)
    found = prune(model, data, "sparsity=0.6")
    assert found.model.two.weight is found.model.one.weight
    assert zeros(found.model) == pytest.approx(0.6, abs=0.02)
    assert set(found.touched) == {"up", "lstm", "one", "two"}
    assert "one" not in prune(model, data, 'protect=["one"]').touched
    with torch.no_grad():
        assert torch.isfinite(found.model(torch.from_numpy(data))).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("sparsity=1.0", "between 0 and 1"),
        ("sparsity=0.5,amount=0.5", "more than one goal"),
        ('sparsity=0.5,pattern="2:4"', "says it itself"),
        ("amount=1.5", "whole number"),
        ("amount=100000,importance=l1", "more than there are"),
        ("sparsity=0.999", "0.99 at most"),
        ('layers=["nowhere"]', "no such weight"),
        ("samples=0", "at least 1"),
        ("pattern=some", "no pattern"),
    ],
)
def test_bad_options_are_refused_in_words_and_nothing_changes(model, data, options, words):
    before = state_digest(model)
    with pytest.raises(UsageError, match=words):
        prune(model, data, options)
    assert state_digest(model) == before


def test_without_data_only_what_needs_none(model):
    x = torch.zeros(0, 4, 6, 6)
    from karui.graph.call import signature_of
    from karui.techniques import Given
    from karui.techniques.prune_weights import PruneWeights

    signature, example = signature_of(model, torch.zeros(4, 4, 6, 6), 1)
    given = Given(example, {signature.inputs[0].name: x.numpy()}, signature)
    with pytest.raises(UsageError, match="needs calibration data"):
        PruneWeights().apply(copy.deepcopy(model), given)
    found = PruneWeights(importance="l1", compensate=False).apply(copy.deepcopy(model), given)
    assert zeros(found.model) == pytest.approx(0.8, abs=0.01)


@pytest.mark.gate
def test_masks_of_torch_become_plain_zeros_in_the_copy_and_stay_in_the_original(data):
    torch.manual_seed(0)
    model = Net().eval()
    parts = [(model.stem, "weight"), (model.depth, "weight"), (model.head, "weight")]
    torch_prune.global_unstructured(parts, pruning_method=torch_prune.L1Unstructured, amount=0.5)
    torch_prune.l1_unstructured(model.head, "weight", amount=0.5)  # twice: a chain of masks
    torch_prune.ln_structured(model.point, "weight", amount=0.25, n=2, dim=0)
    names, x = list(model.state_dict()), torch.from_numpy(data)
    copied = private_copy(model)
    assert sorted(copied.state_dict()) == sorted(Net().state_dict())
    with torch.no_grad():
        torch.testing.assert_close(copied(x), model(x), rtol=0, atol=0)
    assert not any(bool(torch.signbit(p[p == 0]).any()) for p in copied.parameters())
    pruned = prune(model, data, "sparsity=0.8").model
    assert zeros(pruned) == pytest.approx(0.8, abs=0.01)
    for part, name in parts:
        assert bool((pruned.get_submodule(path_of(model, part)).weight[getattr(part, name) == 0] == 0).all())
    assert list(model.state_dict()) == names


def path_of(model, part):
    return next(path for path, one in model.named_modules() if one is part)
