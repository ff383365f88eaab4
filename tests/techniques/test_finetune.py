"""Recovery: what a cut took comes back, from the original's answers alone or by the user's own function."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

import karui
from karui.bench.rounds import Pace
from karui.errors import Unsupported, UsageError
from karui.graph.call import signature_of
from karui.graph.inspect import private_copy, state_digest
from karui.graph.zeros import zeros_of
from karui.optimize import Settings
from karui.techniques import Applied, Given

pytest.importorskip("lightning_fabric")

from karui.techniques.finetune import Finetune

SHORT = Finetune(steps=60, lr=1e-2, batch=32)


def net_of(width: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 3),
    ).eval()  # fmt: skip


def inputs(count: int = 256) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network that knows its labels: the largest of three inputs."""
    net = net_of().train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(net(inputs()), labels()).backward()
        optimizer.step()
    return net.eval().requires_grad_(True)


def labels(count: int = 256) -> torch.Tensor:
    return inputs(count)[:, :3].argmax(1)


def with_zeros(net: nn.Module, share: float = 0.7) -> nn.Module:
    sparse = private_copy(net)
    for part in (sparse[0], sparse[3]):
        order = part.weight.abs().flatten().argsort()
        part.weight.data.view(-1)[order[: int(share * len(order))]] = 0
    return sparse


def apply(net: nn.Module, options: Finetune = SHORT, train=None, teacher=None, finetune=None) -> Applied:
    signature, example = signature_of(net, inputs(4), 1)
    calibrate = {signature.inputs[0].name: inputs().numpy()}
    given = Given(example, calibrate, signature, train, teacher=teacher, finetune=finetune)
    return options.apply(private_copy(net), given)


def gap(net: nn.Module, wanted: nn.Module) -> float:
    fresh = torch.randn(500, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float((net(fresh) - wanted(fresh)).square().mean() / wanted(fresh).var())


def test_the_original_teaches_a_sparse_model_without_labels(trained):
    sparse = with_zeros(trained)
    applied = apply(sparse, teacher=trained)
    assert gap(applied.model, trained) < 0.2 * gap(sparse, trained)
    before, after = zeros_of(sparse), zeros_of(applied.model)
    assert all(torch.equal(after[name], zero) for name, zero in before.items())
    assert applied.touched == ("0", "1", "3", "5") and not applied.model.training
    assert applied.facts["distill"] == 1 and not applied.facts["labels"]


def test_labels_serve_alone_or_beside_a_teacher(trained):
    sparse, train = with_zeros(trained, 0.9), (inputs(), labels())
    for teacher, share in ((None, 0.0), (trained, 0.5)):
        applied = apply(sparse, train=train, teacher=teacher)
        right = (applied.model(inputs()).argmax(1) == labels()).float().mean()
        assert right > (sparse(inputs()).argmax(1) == labels()).float().mean()
        assert applied.facts["distill"] == share and applied.facts["labels"]


def test_the_users_own_function_trains_and_zeros_are_put_back(trained):
    sparse, state = with_zeros(trained), torch.get_rng_state()

    def own(net: nn.Module) -> None:
        net.train()
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            functional.cross_entropy(net(inputs()), labels()).backward()
            optimizer.step()

    one, two = (apply(sparse, finetune=own) for _ in range(2))
    assert one.facts == {"by": "the task's own function"} and one.touched == ("0", "1", "3", "5")
    assert state_digest(one.model) == state_digest(two.model) and not one.model.training
    assert all(torch.equal(zeros_of(one.model)[name], zero) for name, zero in zeros_of(sparse).items())
    assert all(weight.grad is None for weight in one.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert apply(sparse, finetune=lambda net: with_zeros(trained)).model is not sparse


def test_what_the_users_function_did_to_the_same_model_is_not_repeated(trained, tmp_path):
    calls = []

    def own(net: nn.Module) -> None:
        calls.append(net)
        net[0].weight.data.mul_(2)

    signature, example = signature_of(trained, inputs(4), 1)
    given = Given(example, example, signature, finetune=own, folder=tmp_path)
    one, two = (SHORT.apply(private_copy(trained), given).model for _ in range(2))
    assert len(calls) == 1 and state_digest(one) == state_digest(two) != state_digest(trained)
    SHORT.apply(with_zeros(trained), given)
    assert len(calls) == 2


def test_what_the_users_function_does_wrong_is_said(trained):
    with pytest.raises(UsageError, match="gave a int, not an nn.Module"):
        apply(trained, finetune=lambda net: 3)
    with pytest.raises(UsageError, match="function that trains failed") as error:
        apply(trained, finetune=lambda net: net.there_is_no_such_thing)
    assert "test_finetune.py, line" in error.value.why


def test_nothing_to_learn_is_said(trained):
    applied = apply(trained)
    assert applied.touched == () and "neither labels nor a teacher" in applied.skipped["model"]
    with pytest.raises(Unsupported, match="nothing to learn"):
        apply(trained, teacher=trained)
    with pytest.raises(UsageError, match="needs labels"):
        apply(trained, dataclasses.replace(SHORT, distill=0.5), teacher=net_of())


def test_a_narrowed_model_of_either_form_is_trained(trained):
    signature, example = signature_of(trained, inputs(4), 1)
    name = signature.inputs[0].name
    given = Given(example, {name: inputs().numpy()}, signature, teacher=trained)

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = private_copy(trained)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body[3:](self.body[:3](x).view(-1, 24))

    for net, form in ((trained, "module"), (Written().eval(), "graph")):
        cut = karui.apply("prune_channels:ratio=0.5,importance=ln,compensate=false", net, inputs=inputs())
        assert cut.facts["form"] == form
        narrow = cut.model.eval()
        before = gap(narrow, trained)
        applied = SHORT.apply(narrow, given)
        assert gap(applied.model, trained) < 0.5 * before and applied.touched


def test_apply_gives_the_model_before_its_steps_as_the_teacher(trained):
    steps = "prune_channels:ratio=0.5 + finetune:steps=40,lr=0.01"
    state = state_digest(trained)
    applied = karui.apply(steps, trained, inputs=inputs(), calibrate=[inputs()])
    assert applied.facts["loss"][1] < applied.facts["loss"][0] and applied.model[0].out_features == 12
    assert state_digest(trained) == state


@pytest.mark.gate
def test_in_a_run_it_is_trained_once_for_all_runtimes_and_never_again(tmp_path, trained, monkeypatch):
    """The run is wiped of all but its checkpoints, as if it had been killed before the first artifact."""
    recipes = tuple(
        f"prune_channels:ratio=0.5 + finetune:steps=60 + fp32@{runtime}"
        for runtime in ("torch_eager", "torchscript")
    )
    task = karui.Task(
        trained, inputs(4), train=(inputs(), labels()), select=(inputs(200), labels(200)), name="small"
    )
    pace = Pace(least=3, most=4, seconds=0.2)
    settings = Settings(recipes=recipes, pace=pace, final=pace)
    done = karui.optimize(task, max_drop=90, out=tmp_path / "run", settings=settings)
    trials = [one for one in done.facts["trials"] if one["recipe"] in recipes]
    assert len(trials) == 2 and all(one["status"] != "failed" for one in trials), trials
    steps = trials[0]["executed"]["steps"]["finetune:steps=60"]
    assert steps["steps"] == 60 and steps["labels"]
    files = sorted((tmp_path / "run" / "training").rglob("*.pt"))
    assert len(files) == 1
    made = files[0].stat().st_mtime_ns
    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if "finetune" in line and '"trial"' in line)
    journal.write_text("".join(lines[:first]))
    monkeypatch.setattr("karui.graph.training.loop.Training.go", lambda *_: pytest.fail("trained again"))
    again = karui.optimize(task, max_drop=90, out=tmp_path / "run", settings=settings)
    assert files[0].stat().st_mtime_ns == made
    assert [one["recipe"] for one in again.facts["trials"]] == [one["recipe"] for one in done.facts["trials"]]
    assert all(one["status"] != "failed" for one in again.facts["trials"])
