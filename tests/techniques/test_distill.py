"""Distillation: to a narrower copy or a given student, with every loss, and what would teach nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from karui.errors import UsageError
from karui.graph.call import signature_of
from karui.graph.inspect import private_copy, state_digest
from karui.techniques import Applied, Given

pytest.importorskip("lightning_fabric")

from karui.graph.training import hints as hinting
from karui.techniques.distill import Distill

SHORT = Distill(steps=60, batch=32, lr=1e-2)


def net_of(width: int = 16, outputs: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(4 * width, outputs),
    )  # fmt: skip
    net(inputs())
    return net.eval()


def inputs(count: int = 128) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def apply(options: Distill = SHORT, net=None, train=None, student=None, teacher=None) -> Applied:
    net = net or net_of()
    signature, example = signature_of(net, inputs(4), 1)
    calibrate = {signature.inputs[0].name: inputs().numpy()}
    given = Given(example, calibrate, signature, train, student=student, teacher=teacher)
    return options.apply(private_copy(net), given)


@pytest.mark.parametrize("loss", ["kd", "dist", "squares", "auto"])
@pytest.mark.parametrize("start", ["weights", "fresh"])
def test_a_narrower_copy_learns_from_the_model_without_labels(loss, start):
    net = net_of()
    state = state_digest(net)
    applied = apply(dataclasses.replace(SHORT, loss=loss, start=start), net)
    before, after = applied.facts["loss"]
    assert after < 0.7 * before
    assert applied.model[0].out_channels == 8 == applied.model[4].out_channels
    assert applied.facts["kept"] == {"0.weight[0]": "8 of 16", "4.weight[0]": "8 of 16"}
    assert applied.facts["form"] == "module" and not applied.facts["labels"]
    big, small = applied.facts["parameters"]
    assert small == sum(one.numel() for one in applied.model.parameters()) < big / 2
    assert state_digest(net) == state and not applied.model.training


def test_width_multiples_and_protected_layers():
    applied = apply(dataclasses.replace(SHORT, width=0.3, multiple_of=4, steps=2))
    assert applied.model[0].out_channels == 4 == applied.model[4].out_channels
    applied = apply(dataclasses.replace(SHORT, width=0.25, protect=("0",), steps=2))
    assert (applied.model[0].out_channels, applied.model[4].out_channels) == (16, 4)
    fresh = [apply(dataclasses.replace(SHORT, start="fresh", steps=2, seed=seed)) for seed in (0, 0, 1)]
    digests = [state_digest(one.model) for one in fresh]
    assert digests[0] == digests[1] != digests[2]


def test_a_given_student_is_taught_with_labels_or_without():
    labels = torch.arange(128) % 4
    for train, share in ((None, 1.0), ((inputs(), labels), 0.5)):
        applied = apply(train=train, student=lambda: net_of(3, seed=1))
        assert applied.facts["loss"][1] < applied.facts["loss"][0]
        assert applied.facts["distill"] == share and applied.facts["student"] == "Sequential"
        assert applied.model[0].out_channels == 3 and "positions" not in applied.facts
    one, two = (apply(student=other) for _ in range(2))
    assert state_digest(one.model) == state_digest(two.model), "what the student draws is seeded"


def test_the_tasks_teacher_is_asked_instead_of_the_model():
    teacher = net_of(seed=5)
    applied = apply(dataclasses.replace(SHORT, loss="squares", steps=120), teacher=teacher)
    with torch.no_grad():
        wanted, mine, models = teacher(inputs()), applied.model(inputs()), net_of()(inputs())
    assert (mine - wanted).square().mean() < 0.7 * (models - wanted).square().mean()


@pytest.mark.parametrize("given", ["narrower", "student"])
def test_hints_lead_layers_to_those_of_the_teacher(given):
    """The distance that a projection leaves shrinks more than without hints."""
    student = None if given == "narrower" else lambda: net_of(3, seed=1)
    applied = apply(dataclasses.replace(SHORT, hints="found", hint=5.0), student=student)
    assert applied.facts["hints"] == {"0": "0", "4": "4"}
    named = apply(dataclasses.replace(SHORT, hints=("6:6", "9")), student=student)
    assert named.facts["hints"] == {"6": "6", "9": "9"}
    for one in (applied, named):
        assert one.facts["loss"][1] < one.facts["loss"][0]
        assert not any(part._forward_hooks for part in one.model.modules())
        assert isinstance(one.model, nn.Sequential)


def test_projections_learn_a_layer_that_is_a_mixture_of_the_teachers():
    teacher, student = net_of(4), net_of(4, seed=3)
    with hinting.Hinted(student, teacher, [("0", "0")], 1.0) as hinted:
        hinted(inputs())
        teacher(inputs())
        hinted.fit()
        optimizer = torch.optim.Adam(hinted.parameters(), 3e-2)
        losses = []
        for _ in range(80):
            optimizer.zero_grad()
            hinted(inputs())
            with torch.no_grad():
                teacher(inputs())
            loss = hinted.loss()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("hints", "said"),
    [(("nowhere",), "there is no layer 'nowhere'"), (("0:4",), "in the number of channels alone")],
)
def test_hints_that_do_not_fit_are_refused(hints, said):
    with pytest.raises(UsageError) as error:
        apply(dataclasses.replace(SHORT, hints=hints))
    assert said in str(error.value)


def other() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def test_students_that_do_not_fit_are_refused():
    net = net_of()
    for student, said in (
        (lambda: net_of(outputs=3), "another form"),
        (lambda: 3, "is a int, not an nn.Module"),
        (lambda: nn.Linear(1, 1), "does not run"),
        (lambda: 1 / 0, "makes the student failed"),
    ):
        with pytest.raises(UsageError, match=said):
            apply(student=student, net=net)
    with pytest.raises(UsageError, match="shares weights"):
        signature, example = signature_of(net, inputs(4), 1)
        SHORT.apply(net, Given(example, example, signature, student=lambda: net))
    with pytest.raises(UsageError, match="no layers for hints"):
        apply(dataclasses.replace(SHORT, hints="found"), student=other)


@pytest.mark.parametrize("loss", ["kd", "dist"])
def test_one_score_cannot_be_compared_by_classes_and_regression_takes_squares(loss):
    net = net_of(outputs=1)
    with pytest.raises(UsageError, match="would always be zero") as error:
        apply(dataclasses.replace(SHORT, loss=loss), net)
    assert error.value.fix == "loss=squares"
    applied = apply(net=net)
    assert applied.facts["loss"][1] < applied.facts["loss"][0]


def test_a_width_out_of_range_and_a_model_that_cannot_be_narrower():
    with pytest.raises(UsageError, match="width must lie between 0 and 1"):
        apply(dataclasses.replace(SHORT, width=1.0))
    applied = apply(net=nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval())
    assert applied.touched == () and "the model's output" in str(applied.skipped)
