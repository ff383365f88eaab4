"""The built-in loop: what it learns from, what it promises, what it refuses."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import karui
from karui.bench.rounds import Pace
from karui.errors import Unsupported, UsageError
from karui.graph.call import signature_of
from karui.graph.inspect import state_digest
from karui.optimize import Settings
from karui.techniques import Applied, Given

pytest.importorskip("lightning_fabric")

from karui.graph.training.losses import kd, label_loss, squares
from karui.techniques.quantize_aware import QuantizeAware

SHORT = QuantizeAware(steps=6, lr=1e-2, batch=16)


def net_of(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(64, outputs),
    )
    net(torch.randn(32, 1, 6, 6))
    return net.eval()


def images(count: int = 64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, 1, 6, 6)).astype(np.float32))


def labels(count: int = 64) -> Tensor:
    return torch.arange(count) % 3


def apply(options: QuantizeAware = SHORT, net: nn.Module | None = None, train=None) -> Applied:
    net = net or net_of()
    signature, example = signature_of(net, images(4), 1)
    name = signature.inputs[0].name
    given = Given(example, {name: images(32).numpy()}, signature, train)
    return options.apply(copy.deepcopy(net), given)


SETS = {
    "a pair": lambda: (images(), labels()),
    "a dataset": lambda: TensorDataset(images(), labels()),
    "batches": lambda: list(zip(images().split(16), labels().split(16))),
    "a function": lambda: lambda: zip(images().split(16), labels().split(16)),
    "a function of a dataset": lambda: lambda: TensorDataset(images(), labels()),
}


@pytest.mark.parametrize("kind", SETS)
def test_it_learns_from_labels_in_any_form(kind):
    applied = apply(train=SETS[kind]())
    before, after = applied.facts["loss"]
    assert after < before
    assert applied.facts["steps"] == 6 and applied.facts["labels"] and applied.facts["distill"] == 0.5
    assert applied.touched == ("0", "5") and not applied.skipped
    assert len(applied.ranges) == applied.facts["ranges"] and all(r.learned for r in applied.ranges.values())
    assert isinstance(applied.model, nn.Sequential) and not applied.model.training
    assert all(one.grad is None for one in applied.model.parameters())


def test_without_labels_the_original_teaches():
    options = dataclasses.replace(SHORT, bits=2, lr=3e-3, steps=20, freeze=0.0)
    for train in ([images()], None):  # None: the calibration inputs serve
        applied = apply(options, train=train)
        assert applied.facts["distill"] == 1 and not applied.facts["labels"]
        assert applied.facts["loss"][1] < applied.facts["loss"][0]


def test_zeros_in_weights_stay_zero():
    net = net_of()
    net[5].weight.data[torch.rand(3, 64, generator=torch.Generator().manual_seed(0)) < 0.5] = 0
    applied = apply(net=net, train=(images(), labels()))
    zeros = net[5].weight == 0
    assert (applied.model[5].weight[zeros] == 0).all() and (applied.model[5].weight != 0).sum() == (
        ~zeros
    ).sum()


def test_targets_that_are_numbers_are_met_by_squares():
    applied = apply(dataclasses.replace(SHORT, distill=0.0), net_of(1), (images(), images().mean((1, 2, 3))))
    assert applied.facts["loss"][1] < applied.facts["loss"][0]


def test_seeds_reproduce_and_leave_the_global_state_alone():
    net, train = net_of(), TensorDataset(images(), labels())
    state = torch.get_rng_state()
    one, two = apply(SHORT, net, train), apply(SHORT, net, train)
    assert torch.equal(torch.get_rng_state(), state)
    assert state_digest(one.model) == state_digest(two.model) and one.facts == two.facts
    other = apply(dataclasses.replace(SHORT, seed=1), train=train)
    assert state_digest(other.model) != state_digest(one.model)


@pytest.mark.parametrize(("share", "batches"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_norms_keep_their_statistics_from_a_share_of_the_steps_on(share, batches):
    net = net_of()
    applied = apply(dataclasses.replace(SHORT, freeze=share), net, (images(), labels()))
    assert int(applied.model[1].num_batches_tracked) == int(net[1].num_batches_tracked) + batches


def test_epochs_are_passes():
    options = dataclasses.replace(SHORT, epochs=2)
    assert apply(options, train=(images(), labels())).facts["steps"] == 8
    assert apply(options, train=TensorDataset(images(), labels())).facts["steps"] == 8


def test_protected_layers_stay_in_float_and_a_model_without_layers_is_left_alone():
    applied = apply(dataclasses.replace(SHORT, protect=("5",), bits=4))
    assert applied.touched == ("0",) and "protect" in applied.skipped["5.weight"]
    assert applied.ranges["0.weight"].bits == 4 and "5.weight" not in applied.ranges
    net = nn.Sequential(nn.Flatten(), nn.Softmax(1)).eval()
    applied = apply(net=net)
    assert applied.touched == () and applied.skipped and applied.ranges is None


def test_ranges_of_an_own_loop_are_taken_over(tmp_path):
    net = net_of()
    aware = karui.quantize_aware(net, images(4), [images()])
    optimizer = torch.optim.Adam(aware.train().groups(lr=1e-2))
    for part in images().split(16):
        optimizer.zero_grad()
        (aware(part) - 1).square().mean().backward()
        optimizer.step()
    aware.eval().save_ranges(tmp_path)
    applied = apply(QuantizeAware(ranges=str(tmp_path)), aware.model)
    assert applied.touched == ("0", "5")
    assert state_digest(applied.model) == state_digest(aware.model)
    assert all(torch.equal(applied.ranges[key].high, one.high) for key, one in aware.ranges().items())
    with pytest.raises(UsageError, match="are not of this model"):
        apply(QuantizeAware(ranges=str(tmp_path)), net_of(5))


@pytest.mark.parametrize(
    ("options", "train", "said"),
    [
        ({"distill": 0.5}, [images()], "needs labels"),
        ({"distill": 0.0}, None, "needs labels"),
        ({"distill": 2.0}, [images()], "share of the loss"),
        ({"steps": 0}, None, "no step to train"),
        ({}, [], "no batch of two samples"),
        ({}, [(images(1), labels(1))], "no batch of two samples"),
        ({}, iter([(images(), labels())]), "no batch of two samples"),
        ({}, (images(), torch.randn(64, 7)), "cannot be compared"),
        ({"bits": 1}, None, "1 bits"),
        ({"bits": 0}, None, "0 bits"),
    ],
)
def test_what_cannot_be_trained_is_said(options, train, said):
    with pytest.raises(UsageError, match=said):
        apply(dataclasses.replace(SHORT, **options), train=train)


def test_missing_data_and_a_loss_that_runs_away_are_said():
    net = net_of()
    signature, example = signature_of(net, images(4), 1)
    nothing = {signature.inputs[0].name: images(0).numpy()}
    with pytest.raises(Unsupported, match="no calibration data"):
        SHORT.apply(net, Given(example, nothing, signature))
    with pytest.raises(Unsupported, match="not finite"):
        apply(dataclasses.replace(SHORT, lr=1e30), train=(images(), labels()))


def test_losses_are_zero_for_equal_answers_and_count_samples_alike():
    one = torch.randn(8, 3)
    assert float(kd(one, one)) == pytest.approx(0, abs=1e-6)
    assert float(squares({"a": one}, {"a": one})) == 0
    assert float(kd(one.repeat(2, 1), -one.repeat(2, 1))) == pytest.approx(float(kd(one, -one)), rel=1e-5)
    assert float(label_loss({"logits": one, "more": one}, one.argmax(1))) < float(
        label_loss(one, one.argmin(1))
    )


@pytest.mark.gate
def test_the_int8_file_of_a_run_is_what_was_trained(tmp_path):
    """In a recipe: built from the learned ranges, and verified against the trained model."""
    pytest.importorskip("onnxruntime")
    recipe = "quantize_aware:steps=4,batch=16 + int8@onnxruntime"
    task = karui.Task(net_of(), images(4), calibrate=[images()], select=[images(200)], score="agreement")
    pace = Pace(least=3, most=4, seconds=0.2)
    settings = Settings(recipes=(recipe,), pace=pace, final=pace)
    done = karui.optimize(task, max_drop=90, out=tmp_path / "run", settings=settings)
    trial = next(one for one in done.facts["trials"] if one["recipe"] == recipe)
    assert trial["status"] != "failed", trial["reason"]
    assert trial["executed"]["steps"]["quantize_aware:steps=4,batch=16"]["steps"] == 4
    tables = list((tmp_path / "run").glob("trials/*/artifact/ranges.json"))
    assert len(tables) == 1 and '"learned": true' in tables[0].read_text()
