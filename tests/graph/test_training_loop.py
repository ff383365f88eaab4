"""The loop: what it minimises goes down, what it must leave alone stays, and what fails says so."""

from __future__ import annotations

import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from nets import images, labels, material, net_of
from torch import nn

from karui.errors import Tampered, Unsupported, UsageError
from karui.graph.inspect import state_digest
from karui.graph.training import learn, loop
from karui.graph.training.loop import Ways
from karui.graph.training.losses import Aim
from karui.graph.training.options import Options
from karui.graph.zeros import zeros_of

SHORT = Options(steps=8, batch=16, lr=1e-2)


def fit(options: Options = SHORT, train="labels", net=None, aim=None, ways=None):
    """A fresh network towards another one's answers, and labels; the network and what was told."""
    net = net or net_of(seed=1)
    data = material((images(), labels()) if train == "labels" else train)
    return net, learn(net, net_of(), data, aim or Aim(), options, ways)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "constant"])
def test_the_loss_falls(optimizer, schedule):
    options = dataclasses.replace(SHORT, optimizer=optimizer, schedule=schedule, weight_decay=1e-3, clip=1.0)
    net, told = fit(options)
    assert told["loss"][1] < told["loss"][0] and told["steps"] == 8
    assert told["distill"] == 0.5 and told["labels"]
    assert not net.training and all(one.grad is None for one in net.parameters())


def test_schedules_end_where_they_should():
    for name, start, top, end in (
        ("cosine", 1.0, 0, 0.0),
        ("one_cycle", 1 / 25, 30, 0.0),
        ("constant", 1, 0, 1),
    ):
        options = dataclasses.replace(SHORT, schedule=name)
        shares = [options.share_of_lr(step, 100) for step in range(101)]
        assert shares[0] == pytest.approx(start) and shares[-1] == pytest.approx(end, abs=1e-9)
        assert max(shares) == pytest.approx(1.0) and shares.index(max(shares)) == top


def test_a_seed_reproduces_and_all_global_random_states_stay():
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    (one, _), (two, _), (other, _) = fit(), fit(), fit(dataclasses.replace(SHORT, seed=1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1] and random.getstate() == states[2]
    assert state_digest(one) == state_digest(two) != state_digest(other)


def test_accumulated_steps_are_those_of_the_whole_batch():
    """Without norms, dropout or labels two halves give the gradient of the whole."""
    batches = list(images().split(16))
    halves = [half for batch in batches for half in batch.split(8)]
    nets = []
    for data, count in ((batches, 1), (halves, 2)):
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
        torch.manual_seed(1)
        nn.init.normal_(net[1].weight)
        nn.init.zeros_(net[1].bias)
        options = dataclasses.replace(SHORT, optimizer="sgd", accumulate=count, epochs=2)
        told = fit(options, data, net, Aim(loss="kd"))[1]
        assert told["steps"] == 8
        nets.append(net)
    torch.testing.assert_close(nets[0][1].weight, nets[1][1].weight, rtol=1e-5, atol=1e-6)


def test_norms_learn_as_usual_or_keep_their_statistics():
    before = int(net_of(seed=1)[1].num_batches_tracked)
    for freeze, batches in ((1.0, 8), (0.5, 4), (0.0, 0)):
        net, _ = fit(dataclasses.replace(SHORT, freeze=freeze))
        assert int(net[1].num_batches_tracked) == before + batches


def test_zeros_are_held_unless_that_is_not_wanted():
    net = net_of(seed=1)
    net[5].weight.data[torch.rand_like(net[5].weight) < 0.5] = 0
    before = zeros_of(net)
    free = copy.deepcopy(net)
    fit(dataclasses.replace(SHORT, optimizer="adamw", weight_decay=0.1, accumulate=2, clip=0.5), net=net)
    assert torch.equal(zeros_of(net)["5.weight"], before["5.weight"])
    fit(net=free, ways=Ways(hold=False))
    assert "5.weight" not in zeros_of(free)


def test_it_stops_early_and_keeps_the_best():
    options = Options(steps=200, batch=16, lr=0.05, patience=2, schedule="constant")
    net, told = fit(options, aim=Aim(distill=0))
    first, best = told["held_out"]
    assert told["stopped"] and told["steps"] < 200 and best <= first
    assert told["steps"] % (200 // loop.CHECKS) == 0
    again, _ = fit(dataclasses.replace(options, steps=told["steps"]), aim=Aim(distill=0))
    assert state_digest(net) != state_digest(again), "the best weights are older than the last"


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_learns_the_same(precision):
    plain, half = (fit(dataclasses.replace(SHORT, precision=kind))[1] for kind in ("32", precision))
    assert half["loss"][1] == pytest.approx(plain["loss"][1], rel=0.1)
    assert half["loss"][1] < half["loss"][0]


def test_an_overflow_is_left_out_and_told():
    """The scale starts at 65536: gradients of inputs in the hundreds overflow until it has come down."""
    net, told = fit(dataclasses.replace(SHORT, precision="16-mixed", steps=20), (images() * 300, labels()))
    assert 0 < told["overflows"] < 20
    assert all(torch.isfinite(one).all() for one in net.parameters())
    with pytest.raises(Unsupported, match="30 steps in a row overflow") as error:
        fit(dataclasses.replace(SHORT, precision="16-mixed", steps=100), (images() * 1e6, labels()))
    assert "bf16-mixed" in error.value.fix


def test_a_loss_that_runs_away_stops_with_its_step():
    with pytest.raises(Unsupported, match="the loss is not finite at step") as error:
        fit(dataclasses.replace(SHORT, lr=1e30))
    assert "smaller lr" in error.value.fix


def test_progress_is_told_with_the_time_left():
    heard = []
    fit(ways=Ways(watch=heard.append))
    assert [one.step for one in heard] == list(range(1, 9)) and heard[0].steps == 8
    assert heard[0].left_s > 0 and heard[-1].left_s == 0 and heard[-1].loss > 0


def test_a_training_that_takes_too_long_is_given_up_after_its_first_steps():
    heard = []
    with pytest.raises(Unsupported, match="would take .* s more") as error:
        fit(dataclasses.replace(SHORT, steps=10**6, most_s=5.0), ways=Ways(watch=heard.append))
    assert error.value.why == "5 s are allowed" and len(heard) == loop.TRIED
    assert fit(dataclasses.replace(SHORT, steps=20, most_s=60.0))[1]["steps"] == 20


def test_nothing_to_learn_and_nothing_that_could():
    with pytest.raises(Unsupported, match="nothing to learn") as error:
        fit(train=[images()], net=net_of())
    assert "labels, or a teacher" in error.value.fix
    net = net_of(seed=1)
    for one in net.parameters():
        one.requires_grad_(False)
    with pytest.raises(Unsupported, match="no parameter can be trained"):
        fit(net=net)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"clip": -1.0}, "clip must be above 0"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"freeze": 1.5}, "freeze not between"),
        ({"steps": 0}, "no step to train"),
        ({"epochs": 0}, "no step to train"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        fit(dataclasses.replace(SHORT, **options))


def test_a_finished_run_is_not_repeated_and_another_has_a_file_of_its_own(tmp_path):
    heard = []
    ways = Ways(folder=tmp_path, watch=heard.append)
    net, told = fit(ways=ways)
    again, retold = fit(ways=ways)
    assert state_digest(net) == state_digest(again) and told == retold and len(heard) == 8
    (file,) = tmp_path.iterdir()
    fit(dataclasses.replace(SHORT, lr=1e-3), ways=ways)
    fit(train=(images(32), labels(32)), ways=ways)
    fit(net=net_of(seed=2), ways=ways)
    assert len(list(tmp_path.iterdir())) == 4 and len(heard) == 32
    file.write_bytes(b"broken")
    with pytest.raises(Tampered, match="cannot be read"):
        fit(ways=ways)
