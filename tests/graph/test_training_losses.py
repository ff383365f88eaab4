"""Losses: zero for equal answers, the same for the same samples twice, and never zero for all answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import images, labels, material, net_of
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from karui.data import Split
from karui.errors import UsageError
from karui.graph.training import learn
from karui.graph.training.losses import Aim, Loss, dist, kd, label_loss, squares
from karui.graph.training.options import Options

ONE = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
KINDS = {"kd": kd, "dist": dist, "squares": squares}


@pytest.mark.parametrize("kind", KINDS)
def test_a_distance_is_zero_for_equal_answers_and_counts_samples_alike(kind):
    measure = KINDS[kind]
    assert float(measure(ONE, ONE)) == pytest.approx(0, abs=1e-6)
    assert float(measure(-ONE, ONE)) > 0.1
    assert float(measure(-ONE.repeat(2, 1), ONE.repeat(2, 1))) == pytest.approx(
        float(measure(-ONE, ONE)), rel=1e-5
    )


def test_a_distance_of_maps_is_that_of_their_positions():
    maps = ONE.t().reshape(1, 3, 2, 4)  # the same eight samples, as positions of one
    for measure in (kd, dist):
        assert float(measure(-maps, maps)) == pytest.approx(float(measure(-ONE, ONE)), rel=1e-5)


def test_dist_does_not_see_scale_and_kd_does():
    probabilities = torch.softmax(ONE, 1)
    shrunk = torch.log(0.5 * probabilities + 0.5 / 3)  # the same ranks, half the contrast
    assert float(dist(shrunk, ONE)) == pytest.approx(0, abs=1e-6)
    assert float(kd(shrunk, ONE)) > 1e-3


def loss_of(aim: Aim, outputs: int = 3, targets=None) -> Loss:
    first = Split({"input": images(8).numpy()}, None if targets is None else targets.numpy())
    return Loss(net_of(outputs), material().signature, aim, first)


def test_auto_means_classes_where_labels_say_so():
    for aim, targets, same in ((Aim(), None, "squares"), (Aim(distill=1.0), labels(8), "kd")):
        loss, named = loss_of(aim, targets=targets), loss_of(Aim(1.0, same), targets=targets)
        batch = Split({"input": images(8).numpy()}, None if targets is None else targets.numpy())
        found, wanted = (one(net_of(seed=1), batch).item() for one in (loss, named))
        assert found == wanted > 0


@pytest.mark.parametrize("kind", ["kd", "dist"])
def test_a_softmax_over_one_score_is_refused(kind):
    with pytest.raises(UsageError, match="would always be zero") as error:
        loss_of(Aim(loss=kind), outputs=1)
    assert error.value.fix == "loss=squares"
    batch = Split({"input": images(8).numpy()})
    assert loss_of(Aim(), outputs=1)(net_of(1, seed=1), batch).item() > 0
    with pytest.raises(UsageError, match="would always be zero"):
        label_loss(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("aim", "targets", "said"),
    [
        (Aim(distill=0.5), None, "needs labels"),
        (Aim(distill=2.0), None, "share of the loss"),
        (Aim(loss="kd", temperature=0.0), labels(8), "temperature must be above 0"),
    ],
)
def test_aims_that_cannot_be_met_are_refused(aim, targets, said):
    with pytest.raises(UsageError, match=said):
        loss_of(aim, targets=targets)


def test_the_teacher_is_only_asked():
    teacher = net_of()
    loss = Loss(teacher, material().signature, Aim(), Split({"input": images(8).numpy()}))
    loss(net_of(seed=1), Split({"input": images(8).numpy()})).backward()
    assert all(one.grad is None for one in teacher.parameters()) and not teacher.training


class Asked(nn.Module):
    """A teacher that counts the samples it is asked about."""

    def __init__(self, net):
        super().__init__()
        self.net, self.samples = net, 0

    def forward(self, x):
        self.samples += len(x)
        return self.net(x)


def trained_by(teacher, train, **how):
    net = net_of(seed=1)
    learn(net, teacher, material(train), Aim(), Options(batch=16, **how))
    return net.state_dict()


@pytest.mark.parametrize("kind", ["pair", "TensorDataset"])
def test_a_teacher_answers_once_for_each_sample_of_a_fixed_set(kind):
    train = (images(64), labels(64)) if kind == "pair" else TensorDataset(images(64), labels(64))
    teacher = Asked(net_of()).eval()
    found = trained_by(teacher, train, epochs=6)
    assert teacher.samples <= 64 + 16 * 2  # the first batch is looked at before
    again = Asked(net_of()).eval()
    asked = trained_by(again, [(x, y) for x, y in zip(images(64).split(16), labels(64).split(16))], epochs=6)
    assert again.samples >= 6 * 64
    assert all(torch.isfinite(one).all() for one in found.values()) and asked.keys() == found.keys()


def test_what_a_teacher_answered_is_what_it_would_answer():
    teacher = net_of()
    loss = Loss(teacher, material().signature, Aim(), Split({"input": images(8).numpy()}, labels(8).numpy()))
    whole = Split({"input": images(48).numpy()}, labels(48).numpy()).placed()
    batch = whole.take(np.random.default_rng(0).permutation(48)[:20])
    wanted = loss.taught(batch)
    loss.remember(whole, 16)
    assert torch.allclose(loss.taught(batch), wanted, atol=1e-6)
    part = batch.take(slice(1, None, 2))  # of one of two processes
    assert torch.allclose(loss.taught(part), wanted[1::2], atol=1e-6)


class Turned(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, row):
        return images(64)[row].flip(-1), labels(64)[row]


class Shaken(TensorDataset):
    """A user's own, that draws its samples anew."""

    def __getitem__(self, row):
        image, label = TensorDataset.__getitem__(self, row)
        return image + torch.randn(()), label


def drawn_anew():
    return images(64) + torch.randn(()), labels(64)


@pytest.mark.parametrize("train", [Turned(), Shaken(images(64), labels(64)), drawn_anew])
def test_samples_that_may_change_are_asked_about_each_time(train):
    teacher = Asked(net_of()).eval()
    trained_by(teacher, train, epochs=3)
    assert teacher.samples >= 3 * 64
