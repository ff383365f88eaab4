"""prune_channels: goals are reached, compensation pays, options do what they say, the model given is
untouched.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import karui
from karui.errors import KaruiError, Unsupported, UsageError
from karui.graph import cut as cutting
from karui.graph.call import signature_of
from karui.graph.inspect import state_digest
from karui.measurement import Ratio
from karui.techniques import Given
from karui.techniques.prune_channels import PruneChannels

torch.set_num_threads(1)


class Residual(nn.Module):
    """Stem, one residual block, head; batch norms everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.conv1 = nn.Conv2d(12, 20, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(20)
        self.conv2 = nn.Conv2d(20, 12, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def data():
    """Images of low rank, so that channels can stand in for each other."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((6, 3, 8, 8))
    return np.einsum("nk,kchw->nchw", rng.standard_normal((200, 6)), basis).astype(np.float32)


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    net = Residual()
    net.train()
    with torch.no_grad():
        for batch in torch.from_numpy(data).split(50):
            net(batch)
    return net.eval()


def prune(model, data, options):
    text = f"prune_channels:{options}" if options else "prune_channels"
    return karui.apply(text, model, inputs=torch.from_numpy(data[:4]), calibrate=[torch.from_numpy(data)])


def widths(model):
    return [len(model.stem[0].weight), len(model.conv1.weight), len(model.conv2.weight)]


@torch.no_grad()
def moved(one, other, data):
    x = torch.from_numpy(data)
    return float((one(x) - other(x)).square().mean() / other(x).var())


@pytest.mark.gate
def test_half_of_every_layer_goes_and_the_class_stays(model, data):
    before = state_digest(model)
    found = prune(model, data, "")
    assert type(found.model) is Residual
    assert widths(found.model) == [6, 10, 6]
    assert found.model.conv1.in_channels == 6
    assert found.model.norm1.num_features == 10
    assert found.model.head.in_features == 6
    assert found.facts["cut_error"] < 1e-5
    assert set(found.touched) >= {"conv1", "norm1", "head"}
    assert "output" in found.skipped["head.weight[0]"]
    assert state_digest(model) == before


@pytest.mark.gate
def test_obs_with_least_squares_loses_less_than_norms(model, data):
    errors = {
        way: moved(prune(model, data, f"ratio=0.5,{way}").model, model, data)
        for way in ("importance=ln,compensate=false", "importance=ln", "importance=obs")
    }
    alone, repaired, best = errors.values()
    assert repaired < 0.3 * alone
    assert best < 0.3 * alone


@pytest.mark.parametrize(("goal", "share"), [("macs", 0.5), ("parameters", 0.6)])
def test_a_goal_is_reached(model, data, goal, share):
    found = prune(model, data, f"{goal}={share}")
    before, after = found.facts[goal]
    assert after <= share * before
    assert after > 0.6 * share * before


@pytest.mark.gate
@pytest.mark.parametrize(("size", "share"), [("0.5", 0.5), ("12kB", None), ("9000", None)])
def test_a_size_is_reached_as_a_share_or_in_bytes(model, data, size, share):
    whole = karui.size_bytes(model)
    found = karui.size_bytes(prune(model, data, f"size={size}").model)
    limit = share * whole if share else {"12kB": 12_000, "9000": 9_000}[size]
    assert 0.8 * limit < found <= limit


def test_a_size_that_cannot_be_reached_is_refused_and_so_is_one_that_there_is(model, data):
    with pytest.raises(Unsupported, match=r"no widths were found that take 0.1 kB") as error:
        prune(model, data, "size=100")
    assert "stay when all went that may go" in error.value.why
    with pytest.raises(Unsupported, match="within 1,000.0 kB already"):
        prune(model, data, "size=1MB")


def test_a_share_that_cannot_be_reached_goes_as_far_as_it_can_and_says_so(model, data):
    found = prune(model, data, "macs=0.001")
    assert "0.1% were asked" in found.skipped["the goal macs"]
    assert widths(found.model) == [1, 1, 1]


def test_the_macs_told_are_those_that_torch_counts(model, data):
    from karui.graph.inspect import macs

    found = prune(model, data, "ratio=0.5")
    x = torch.from_numpy(data[:1])
    assert found.facts["macs"] == [macs(model, (x,), {}), macs(found.model, (x,), {})]


def test_global_scope_takes_a_share_of_all_units(model, data):
    kept = prune(model, data, "ratio=0.4,scope=global").facts["kept"]
    left, whole = (sum(int(text.split(" of ")[i]) for text in kept.values()) for i in (0, 1))
    assert whole == 32
    assert 0.4 * 32 <= whole - left <= 0.4 * 32 + 3


def test_layers_that_are_protected_stay(model, data):
    found = prune(model, data, 'protect=["conv1"]').model
    assert widths(found) == [6, 20, 6]
    some = prune(model, data, 'importance=random,protect=["conv1:0,1,2"]').facts["positions"]["conv1.weight"]
    assert {0, 1, 2} <= set(some["0"])


@pytest.mark.gate
def test_named_channels_go_and_no_others(model, data):
    found = prune(model, data, 'remove=["conv1:3,5,19"]')
    assert widths(found.model) == [12, 17, 12]
    assert found.facts["positions"]["conv1.weight"]["0"] == [i for i in range(20) if i not in (3, 5, 19)]


def test_widths_are_multiples(model, data):
    assert all(width % 4 == 0 for width in widths(prune(model, data, "ratio=0.45,multiple_of=4").model))


def test_steps_reach_the_same_goal(model, data):
    found = prune(model, data, "macs=0.5,steps=2").facts
    assert found["macs"][1] <= 0.5 * found["macs"][0]


@pytest.mark.parametrize(
    "way", ["importance=ln,norm=1", "importance=ln,norm=inf", "importance=ln,dim=1", "importance=taylor",
            "importance=norm_scale", "importance=random,seed=3"],
)  # fmt: skip
def test_every_importance_prunes_as_asked(model, data, way):
    assert widths(prune(model, data, f"ratio=0.5,{way}").model) == [6, 10, 6]


def test_chance_is_the_seeds(model, data):
    def kept(seed):
        return prune(model, data, f"importance=random,compensate=false,seed={seed}").facts["positions"]

    assert kept(1) == kept(1) != kept(2)


@pytest.mark.gate
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("ratio=0.5,macs=0.5", "several goals"),
        ("ratio=1.5", "between 0 and 1"),
        ("macs=0", "between 0 and 1"),
        ("size=0", "share between 0 and 1, or bytes"),
        ("size=1.5", "share between 0 and 1, or bytes"),
        ("size=20fish", "20fish"),
        ("size=0.5,latency=0.5", "several goals: size, latency"),
        ("norm=0.5", "at least 1"),
        ("multiple_of=0", "at least 1"),
        ('protect=["nowhere"]', "no layer 'nowhere'"),
        ('remove=["conv1:99"]', "names no outputs"),
        ('remove=["head:0"]', "cannot go"),
    ],
)
def test_bad_options_are_told(model, data, options, words):
    before = state_digest(model)
    with pytest.raises(UsageError, match=words):
        prune(model, data, options)
    assert state_digest(model) == before


@pytest.mark.gate
def test_channels_that_are_constant_leave_their_constant(data):
    """A batch norm with gamma 0 and beta 0.7 gives a constant: the next layer's bias takes it in."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 4)
    ).eval()
    with torch.no_grad():
        net[1].weight[:4], net[1].bias[:4] = 0.0, 0.7
    found = prune(net, data, 'remove=["0:0,1,2,3"]').model
    assert len(found[0].weight) == 4
    assert moved(found, net, data) < 1e-8


def test_mode_hooks_ties_and_gradients_are_kept(model, data):
    twin = copy.deepcopy(model)
    twin.conv1.weight.requires_grad_(False)
    twin.other = twin.conv1.weight
    calls = []
    twin.head.register_forward_hook(lambda *_: calls.append(1))
    twin.train()
    found = prune(twin, data, "importance=ln,compensate=false").model
    assert found.training and found.conv1.training
    assert not found.conv1.weight.requires_grad
    assert found.conv2.weight.requires_grad
    assert found.other is found.conv1.weight
    before = len(calls)
    found(torch.from_numpy(data[:2]))
    assert len(calls) > before


STEPS = ["edits", "masked", "cut_module", "cut_graph", "verified", "kept_positions"]


@pytest.mark.gate
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_leaves_the_model_as_it_was(model, data, monkeypatch, step):
    before = state_digest(model)

    def fail(*args, **kwargs):
        raise RuntimeError(f"injected at {step}")

    monkeypatch.setattr(cutting, step, fail)
    try:
        made = prune(model, data, "importance=ln,compensate=false")
        if step in ("cut_module", "cut_graph"):  # the other form stands in, or was not needed
            assert made.facts["form"] == ("graph" if step == "cut_module" else "module")
        else:
            assert made.touched == ()
            assert any("injected" in why for why in made.skipped.values())
    except (KaruiError, RuntimeError):
        pass
    assert state_digest(model) == before
    assert widths(model) == [12, 20, 12]


def test_a_model_with_nothing_to_remove_says_why(data):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    found = prune(net, data, "")
    assert found.touched == ()
    assert all(found.skipped.values())


class Macs:
    """A clock that reads a model's latency off its multiply-accumulates, and a constant."""

    def __init__(self, model, example):
        self.model, self.example, self.asked = model, example, []

    def cost(self, model):
        from karui.graph.inspect import macs

        whole = macs(self.model, [self.example], {})
        return 0.1 + macs(model, [self.example], {}) / whole

    def ratios(self, variants, careful=False):
        self.asked += variants
        shares = {name: self.cost(make()) / self.cost(self.model) for name, make in variants.items()}
        return {name: Ratio(1 / s, 0.99 / s, 1.01 / s, "faster") for name, s in shares.items()}

    def original_s(self):
        return 0.010


@pytest.mark.parametrize(("options", "goal"), [({"latency": 0.6}, 0.6), ({"latency_s": 0.008}, 0.8)])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_latency_is_reached_by_the_clocks_word(model, data, options, goal, steps):
    given = with_clock(model, data)
    found = PruneChannels(**options, steps=steps).apply(copy.deepcopy(model), given)
    assert 0.75 * goal < given.clock.cost(found.model) / given.clock.cost(model) <= goal
    assert found.facts["latency"]["predicted"] == pytest.approx(found.facts["latency"]["share"], rel=0.1)
    assert len(given.clock.asked) == len(set(given.clock.asked))  # names tell structures


def with_clock(model, data):
    example = torch.from_numpy(data[:4])
    signature, arrays = signature_of(model, example, 1)
    return Given(arrays, {"x": data}, signature, clock=Macs(model, example))


def test_a_latency_that_there_is_already_is_no_work(model, data):
    with pytest.raises(Unsupported, match=r"within 0.02 s already"):
        PruneChannels(latency_s=0.02).apply(copy.deepcopy(model), with_clock(model, data))


def test_a_latency_goal_without_a_runtime_is_refused(model, data):
    with pytest.raises(UsageError, match="no runtime to time on"):
        prune(model, data, "latency=0.5")


class Attention(nn.Module):
    """Two tokens' worth of nothing but attention: 4 heads of 6."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 24)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def attentive():
    torch.manual_seed(0)
    tokens = torch.randn(64, 6, 8)
    return Attention().eval(), tokens.numpy()


@pytest.mark.parametrize("way", ["", "importance=ln", "importance=taylor", "importance=random"])
def test_whole_heads_go(attentive, way):
    found = prune(*attentive, f"heads=whole,{way}".strip(","))
    assert found.facts["kept"]["attention.in_proj_weight[0] heads"] == "2 of 4"
    assert found.facts["cut_error"] < 1e-5
    kept = found.facts["positions"]["attention.out_proj.weight"]["1"]
    assert len(kept) == 12
    assert {kept[i] // 6 for i in range(0, 12, 6)} == {position // 6 for position in kept}


def test_heads_and_their_widths_are_offered_side_by_side_to_a_goal(attentive):
    found = prune(*attentive, "heads=both,macs=0.4").facts
    assert found["macs"][1] <= 0.4 * found["macs"][0]
    with pytest.raises(UsageError, match="twice"):
        prune(*attentive, "heads=both")


def test_the_least_important_head_is_the_one_that_does_nothing(attentive):
    model, data = attentive
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.attention.out_proj.weight[:, 12:18] = 0.0
    found = prune(silent, data, "heads=whole,ratio=0.25").facts
    assert found["positions"]["attention.out_proj.weight"]["1"] == [*range(12), *range(18, 24)]
