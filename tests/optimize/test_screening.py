"""A search on a real network whose recipes all train: a look at each, a trial of the one that is worth it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn
from trials import BASE

import karui
from karui import journal, presets
from karui.bench.rounds import Pace
from karui.optimize import Settings, try_all
from karui.optimize.plan import Composed, Plan, allowed_points
from karui.optimize.prepare import prepare
from karui.optimize.screening import EFFORT, lowered
from karui.optimize.workshop import Workshop
from karui.process import Limits
from karui.report.explain import explain, text
from karui.search.enumerate import Aim
from karui.space import Axis, Space

CUTS = Axis("channels", tuple(f"prune_channels:macs={m}" for m in (0.35, 0.2, 0.01)), ordered=True)
SPACE = Space((CUTS, Axis("recovery", ("finetune:steps=400",))), ("fp32",), ("onnxruntime",))
HOPELESS = "prune_channels:macs=0.01 + finetune:steps=400 + fp32@onnxruntime"
SHORT = Pace(least=6, most=6, seconds=0.1)
BUDGET = karui.Budget(max_drop=2.0, objective="size")  # bytes do not hang on the clock
CENTRES = torch.randn(8, 6, 16, generator=torch.Generator().manual_seed(5))


def samples(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight classes of six clusters each."""
    chance = torch.Generator().manual_seed(seed)
    labels, cluster = (torch.randint(0, most, (rows,), generator=chance) for most in (8, 6))
    return CENTRES[labels, cluster] + 0.45 * torch.randn(rows, 16, generator=chance), labels


def trained_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8))
    inputs, labels = samples(2000, 1)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for number in range(300):
        rows = slice(number % 10 * 200, number % 10 * 200 + 200)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs[rows]), labels[rows]).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def task() -> karui.Task:
    pytest.importorskip("optuna")
    train, calibrate, select, confirm = (samples(r, s) for s, r in enumerate((2000, 300, 1000, 1000), 1))
    return karui.Task(trained_net(), None, calibrate, select, confirm, train=train)


@pytest.fixture(scope="module", autouse=True)
def small_space():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "space", lambda *_, **__: SPACE)
        yield


def search(task, folder, most: int, screen: int) -> dict:
    settings = Settings(
        recipes=("fp32@torch_eager",), search=most, screen=screen, pace=SHORT, final=SHORT, command="karui x"
    )
    return karui.optimize(task, budget=BUDGET, out=folder, settings=settings).facts


@pytest.fixture(scope="module")
def screened(task, tmp_path_factory):
    """A search of one trial, after a look at each of the three recipes."""
    folder = tmp_path_factory.mktemp("screened") / "run"
    return search(task, folder, 1, 3), folder


@pytest.fixture(scope="module")
def exhaustive(task, tmp_path_factory):
    """A search of as many trials as there are recipes, without looks."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    return search(task, folder, 3, 0), folder


def events(folder, kind: str) -> list[dict]:
    return [event for event in journal.read(folder) if event["event"] == kind]


def size_of_best(facts: dict) -> int:
    return next(trial["size_bytes"] for trial in facts["trials"] if trial["id"] == facts["best"])


@pytest.mark.gate
def test_a_search_that_screens_finds_as_good_a_best_in_fewer_trials(screened, exhaustive):
    (wise, folder), (plain, whole) = screened, exhaustive
    assert wise["best"] == plain["best"] and size_of_best(wise) == size_of_best(plain)
    tried, others = ([event["trial"]["id"] for event in events(one, "trial")[1:]] for one in (folder, whole))
    assert len(tried) == 1 < others.index(plain["best"]) + 1 and not events(whole, "screened")


@pytest.mark.gate
def test_a_hopeless_recipe_is_looked_at_and_never_built_in_full(screened):
    facts, folder = screened
    seen = {event["screened"]["recipe"]: event["screened"] for event in events(folder, "screened")}
    assert seen.keys() == {str(SPACE.recipe(point)) for point in SPACE.points()}
    assert seen[HOPELESS]["look"]["quality"]["low"] > 0.4
    assert HOPELESS not in {trial["recipe"] for trial in facts["trials"]}
    assert len(list((folder / "trials").iterdir())) == 2 and not (folder / "screen").exists()
    assert all(one["look"]["verification"]["status"] == "verified on runtime" for one in seen.values())


def test_a_look_takes_a_part_of_the_training_and_of_the_data_and_none_of_the_confirmation_split(
    screened, task, tmp_path
):
    _, folder = screened
    steps = [p.parent.name for p in folder.glob("training/*/*.pt")]
    assert len(steps) == 1  # only the one that had its trial
    looks = [event["screened"] for event in events(folder, "screened")]
    assert {(one["effort"], one["look"]["quality"]["n"]) for one in looks} == {(EFFORT, 256)}
    job = prepare(task, karui.Target("cpu"), BUDGET, tmp_path)
    low = lowered(job)
    assert low.effort == EFFORT and len(low.splits.calibrate) == 75 and len(low.splits.select) == 256
    assert low.splits.confirm is low.splits.select
    rows = {row.tobytes() for row in job.splits.select.inputs[job.signature.inputs[0].name]}
    assert {row.tobytes() for row in low.splits.select.inputs[job.signature.inputs[0].name]} < rows
    again = lowered(job)
    assert (again.splits.select.targets == low.splits.select.targets).all()


@pytest.mark.gate
def test_what_was_screened_out_is_told_with_what_it_showed_and_why(screened):
    facts, folder = screened
    left = {entry["recipe"]: entry for entry in facts["refused"]}
    assert len(left) == 2 and all(entry["screened"]["effort"] == EFFORT for entry in left.values())
    assert left[HOPELESS]["reason"].startswith("screened out: loses far more than ")
    why = "with 10 % of the training it loses 7"
    assert why in text(explain(facts, HOPELESS)) and why in text(explain(facts))
    assert "Screened with a part of the training" in text(explain(facts))
    for name in ("report.md", "report.html"):
        assert why in (folder / name).read_text(encoding="utf-8")
    measured = json.dumps(facts["trials"]) + json.dumps(facts["pareto"])
    assert HOPELESS not in measured


@pytest.mark.gate
def test_a_run_that_is_killed_while_it_screens_goes_on_to_the_same_end_and_repeats_no_look(
    screened, task, tmp_path
):
    facts, folder = screened
    shutil.copytree(folder, tmp_path / "run")
    whole = (folder / journal.JOURNAL).read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(i for i, line in enumerate(whole) if json.loads(line)["event"] == "screened")
    (tmp_path / "run" / journal.JOURNAL).write_text("".join(whole[:last]) + whole[last][:40])
    again = search(task, tmp_path / "run", 1, 3)
    assert again["best"] == facts["best"]
    assert [t["recipe"] for t in again["trials"]] == [t["recipe"] for t in facts["trials"]]
    for kind, key in (("field", "recipes"), ("proposed", "recipes")):
        assert [e[key] for e in events(tmp_path / "run", kind)] == [e[key] for e in events(folder, kind)]
    names = [event["screened"]["recipe"] for event in events(tmp_path / "run", "screened")]
    assert names == [event["screened"]["recipe"] for event in events(folder, "screened")]
    reasons = [[(e["recipe"], e["reason"]) for e in one["refused"]] for one in (again, facts)]
    assert reasons[0] == reasons[1]


@pytest.mark.gate
def test_no_look_is_taken_when_the_time_is_up(task, tmp_path):
    job = prepare(task, karui.Target("cpu"), karui.Budget(max_drop=2.0, time_s=0.0), tmp_path / "run")
    search = Composed(SPACE, allowed_points(job, SPACE), Aim(job.allowed), 1, 3)
    search.hear({"event": "field", "recipes": [HOPELESS], "beside": [], "places": 1})
    plan = Plan([], named=False, mixed=0, composed=search)
    assert plan.next([BASE]) is None and str(plan.to_screen) == HOPELESS
    with Workshop(job, Limits()) as workshop:
        assert try_all(workshop, plan, None, [BASE], Settings()) == []
    assert not search.known and not (tmp_path / "run").exists()
