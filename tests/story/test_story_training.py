"""``karui finetune`` and ``karui distill``: a training alone, with its score, its losses and its folder."""

from __future__ import annotations

import json

import jobs
import pytest
import torch
from torch import nn

import karui
from karui.errors import Unsupported, UsageError

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.gate

STUDENT = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

def train():
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(3))
    return x, x[:, :3].argmax(1)
"""


@pytest.fixture
def task_file(tmp_path):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    (tmp_path / "student.py").write_text(STUDENT)
    return "job.py:task"


def test_finetune_after_pruning_tells_sizes_losses_and_the_score(cli, task_file, tmp_path):
    step = ["--step", "prune_channels:ratio=0.5,importance=ln,compensate=false"]
    said = cli("finetune", task_file, *step, "--steps", "40", "--lr", "0.01", "--out", "narrow")
    assert said.code == 0, said.err
    assert "finetune:steps=40,lr=0.01" in said.out and "prune_channels:ratio=0.5" in said.out
    assert "training: 40 steps from the teacher's answers: loss " in said.out
    assert "top1: 100.00 → " in said.out and "parameters: 387 → 195 (1/1.98)" in said.out
    assert "0.weight[0]  16 of 32" in said.out
    assert "training: step 40 of 40, loss " in said.err
    found = karui.load_pruned(tmp_path / "narrow", jobs.mlp())
    assert found.model[0].out_features == 16 and found.facts["steps"] == 40


def test_distill_a_narrower_copy_and_a_given_student(cli, task_file, tmp_path):
    said = cli("distill", task_file, "--width", "0.25", "--steps", "40", "--json", "--out", "copy")
    facts = json.loads(said.out)
    assert facts["schema"] == "karui.distill/1" and facts["recipe"] == "distill:width=0.25,steps=40"
    assert facts["kept"] == {"0.weight[0]": "8 of 32"} and facts["loss"][1] < facts["loss"][0]
    assert facts["score"]["after"] == pytest.approx(facts["score"]["before"] - facts["score"]["drop"])
    assert "a print of the user's own" in said.err
    assert karui.load_pruned(tmp_path / "copy", jobs.mlp()).model[0].out_features == 8
    words = ["--student", "student.py:small", "--train", "student.py:train", "--epochs", "2"]
    said = cli("distill", task_file, *words, "--option", "loss=dist", "--out", "small")
    assert said.code == 0, said.err
    assert "training: 8 steps from both" in said.out
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    loaded = karui.load_pruned(tmp_path / "small", net).model
    assert loaded[0].out_features == 6 and not torch.equal(loaded[0].weight, net[0].weight)


def test_a_finished_training_is_not_repeated(cli, task_file, tmp_path):
    words = ["finetune", task_file, "--train", "student.py:train", "--option", "distill=0", "--steps", "60"]
    words += ["--checkpoints", "kept"]
    for folder, steps in (("one", 60), ("two", 60)):
        said = cli(*words, "--out", folder)
        assert said.code == 0, said.err
        assert f"training: {steps} steps from labels" in said.out
        assert ("training: step" in said.err) == (folder == "one")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two and len(list((tmp_path / "kept").glob("*.pt"))) == 1


WRONG = [
    (["finetune", "--epochs", "1", "--steps", "1"], 2, "not allowed with"),
    (["finetune", "--option", "colour=red"], 2, "no option 'colour'"),
    (["finetune", "--option", "distill=0.5"], 2, "needs labels"),
    (["finetune", "--steps", "10"], 1, "nothing to learn"),
    (["finetune", "--lr", "0"], 2, "lr must be above 0"),
    (["finetune", "--train", "nowhere.py:data"], 2, "there is no file nowhere.py"),
    (["finetune", "--step", "fold_norm"], 1, "found nothing to do"),
    (["distill", "--width", "2"], 2, "between 0 and 1"),
    (["distill", "--width", "0.5", "--student", "student.py:small"], 2, "not allowed with"),
    (["distill", "--student", "student.py:train"], 2, "is a tuple, not an nn.Module"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[" ".join(words) for words, _, _ in WRONG])
def test_wrong_words_are_told_and_nothing_is_written(cli, task_file, tmp_path, words, code, message):
    said = cli(words[0], task_file, *words[1:])
    assert said.code == code, said.err
    assert message in said.err
    assert "Traceback" not in said.err and "internal error" not in said.err
    assert not list(tmp_path.glob("karui-*"))


def test_an_onnx_file_cannot_be_trained(cli, tmp_path):
    jobs.write_files(tmp_path)
    said = cli("finetune", "net.onnx", "--select", "data.py:both")
    assert said.code == 2 and "ONNX file cannot be trained" in said.err


def test_the_users_model_is_left_as_it_was():
    model = jobs.mlp().train()
    before = jobs.portrait(model)
    task = karui.Task(model, train=jobs.labelled(jobs.mlp(), 8), inputs=torch.randn(4, 8))
    one = karui.finetune(task, "finetune:steps=10", after="prune_channels:ratio=0.25")
    two = karui.distill(task, "distill:steps=10")
    assert jobs.portrait(model) == before
    for found in (one, two):
        assert found.model is not model and found.model.training and found.facts["score"] is None


def test_own_functions_and_teachers_come_with_the_task():
    calls = []
    teacher = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    x = torch.randn(200, 8)
    task = karui.Task(jobs.mlp(), calibrate=[x], inputs=x[:4], finetune=lambda net: calls.append(net))
    with pytest.raises(Unsupported, match="found nothing to do"):
        karui.finetune(task)
    assert len(calls) == 1
    task = karui.Task(jobs.mlp(), calibrate=[x], inputs=x[:4], teacher=lambda: teacher)
    found = karui.finetune(task, "finetune:steps=60,lr=0.01")
    with torch.no_grad():
        gaps = [(net(x) - teacher(x)).square().mean() for net in (found.model, jobs.mlp())]
    assert gaps[0] < 0.5 * gaps[1]
    with pytest.raises(UsageError, match="the teacher is a str"):
        karui.finetune(karui.Task(jobs.mlp(), calibrate=[x], inputs=x[:4], teacher="big"))


def test_steps_that_change_the_form_and_two_cuts_are_refused():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()
    task = karui.Task(net, train=jobs.labelled(jobs.mlp(), 8), inputs=torch.randn(4, 8))
    with pytest.raises(UsageError, match="changed the form"):
        karui.finetune(task, "finetune:steps=2", after="fold_norm")
    with pytest.raises(UsageError, match="two steps would cut"):
        karui.finetune(task, "distill:steps=2", after="prune_channels:ratio=0.25")
