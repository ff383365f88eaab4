"""``karui prune`` and ``karui.prune``: the technique alone, with its score, its reasons and its folder."""

from __future__ import annotations

import json

import jobs
import pytest
import torch
from torch import nn

import karui
from karui.errors import Unsupported, UsageError

pytestmark = pytest.mark.gate


@pytest.fixture
def task_file(tmp_path):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    return "job.py:task"


def test_it_tells_what_went_what_stayed_and_the_score(cli, task_file, tmp_path):
    said = cli("prune", task_file, "--ratio", "0.5", "--out", "narrow")
    assert said.code == 0, said.err
    assert "prune_channels:ratio=0.5" in said.out
    assert "top1: 100.00 → " in said.out and "a loss of " in said.out and "on 150 samples" in said.out
    assert "parameters: 387 → 195 (1/1.98)" in said.out
    assert "0.weight[0]  16 of 32" in said.out
    assert "the model's output" in said.out
    assert said.out.endswith("folder: narrow\n")
    assert sorted(path.name for path in (tmp_path / "narrow").iterdir()) == [
        "model.safetensors",
        "pruned.json",
    ]
    found = karui.load_pruned(tmp_path / "narrow", jobs.mlp())
    assert found.model[0].out_features == 16


def test_zeros_are_kept_and_opened_again(cli, task_file, tmp_path):
    said = cli("prune", task_file, "--sparsity", "0.75", "--out", "sparse")
    assert said.code == 0, said.err
    assert "prune_weights:sparsity=0.75" in said.out
    assert "top1: 100.00 → " in said.out
    found = karui.load_pruned(tmp_path / "sparse", jobs.mlp())
    weights = [p for p in found.model.parameters() if p.ndim > 1]
    zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
    assert zeros == pytest.approx(0.75, abs=0.01)
    assert "0.weight" in said.out
    said = cli("prune", task_file, "--pattern", "2:4", "--json", "--out", "pairs")
    assert json.loads(said.out)["recipe"] == 'prune_weights:pattern="2:4"'


def test_json_is_alone_on_standard_output(cli, task_file):
    said = cli("prune", task_file, "--macs", "0.6", "--option", "multiple_of=4", "--out", "narrow", "--json")
    facts = json.loads(said.out)
    assert facts["schema"] == "karui.prune/1"
    assert facts["recipe"] == "prune_channels:macs=0.6,multiple_of=4"
    assert facts["folder"] == "narrow"
    assert facts["macs"][1] <= 0.6 * facts["macs"][0]
    assert facts["form"] == "module" and facts["cut_error"] < 1e-5
    score = facts["score"]
    assert score["before"] == 1.0 and score["low"] <= score["drop"] <= score["high"]
    assert score["after"] == pytest.approx(score["before"] - score["drop"])
    assert any("one validation set was given" in note for note in facts["notes"])
    assert "a print of the user's own" in said.err


def test_without_validation_data_no_score_is_told(cli, tmp_path):
    jobs.write_files(tmp_path)
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Sequential("
                                     "nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))\n")  # fmt: skip
    said = cli(
        "prune", "net.py:build", "--inputs", "2x8", "--calibrate", "data.py:both", "--parameters", "0.7"
    )
    assert said.code == 0, said.err
    assert "score: not taken: no validation data were given" in said.out
    assert len(list((tmp_path / "karui-pruned").iterdir())) == 1
    assert cli("prune", "net.py:build", "--inputs", "2x8", "--option", "importance=ln", "--json").code == 0


WRONG = [
    (["--ratio", "0.5", "--macs", "0.5"], "not allowed with"),
    (["--ratio", "half"], "invalid float"),
    (["--ratio", "0.5", "--pattern", "2:4"], "--pattern is of zeros"),
    (["--sparsity", "0.5", "--macs", "0.5"], "not allowed with"),
    (["--sparsity", "1.5"], "between 0 and 1"),
    (["--ratio", "1.5"], "must lie between 0 and 1"),
    (["--option", "colour=red"], "no option 'colour'"),
    (["--option", "norm"], "is not option=value"),
    (["--size", "3fish"], "'3fish' is not a size"),
    (["--size", "0.5", "--option", "latency=0.5"], "several goals: size, latency"),
    (["--sparsity", "0.5", "--consume"], "--consume is for channels"),
    (["--option", "importance=beauty"], "cannot be 'beauty'"),
    (["--option", 'protect=["head"]'], "there is no layer 'head'"),
    (["--select", "nowhere.py:data"], "there is no file nowhere.py"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_words_are_told_and_nothing_is_written(cli, task_file, tmp_path, words, message):
    said = cli("prune", task_file, *words)
    assert said.code == 2, said.err
    assert message in said.err
    assert "Traceback" not in said.err and "internal error" not in said.err
    assert not (tmp_path / "karui-pruned").exists()


def test_a_size_is_a_goal_and_the_dense_network_as_small_is_told(cli, task_file, tmp_path):
    said = cli("prune", task_file, "--size", "0.6", "--checkpoints", "known", "--json", "--out", "small")
    facts = json.loads(said.out)
    assert facts["recipe"] == "prune_channels:size=0.6"
    width, macs = facts["sibling"]
    assert 0 < width < 1 and macs <= facts["macs"][1]
    assert karui.size_bytes(
        karui.load_pruned(tmp_path / "small", jobs.mlp()).model
    ) <= 0.6 * karui.size_bytes(jobs.mlp())
    assert (tmp_path / "known" / "sensitivity.jsonl").is_file()


BLOCKS = """
import torch, karui
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))

def task():
    torch.manual_seed(0)
    return karui.Task(nn.Sequential(Block(), Block()).eval(), calibrate=[torch.randn(64, 8)])
"""


def test_a_model_is_consumed_where_that_is_asked_for(cli, tmp_path):
    (tmp_path / "blocks.py").write_text(BLOCKS)
    said = cli("prune", "blocks.py:task", "--consume", "--ratio", "0.5", "--json", "--out", "narrow")
    kept = json.loads(said.out)["kept"]
    assert kept == {f"{i}.up.weight[0]": "16 of 32" for i in range(2)}
    parts = json.loads((tmp_path / "narrow" / "pruned.json").read_text())["parts"]
    assert sorted(parts) == ["0", "1"]


def test_a_folder_that_is_there_is_left_alone(cli, task_file, tmp_path):
    (tmp_path / "mine").mkdir()
    said = cli("prune", task_file, "--out", "mine")
    assert said.code == 2 and "mine is there already" in said.err
    assert list((tmp_path / "mine").iterdir()) == []


def test_an_onnx_file_cannot_be_pruned(cli, tmp_path):
    jobs.write_files(tmp_path)
    said = cli("prune", "net.onnx", "--select", "data.py:both")
    assert said.code == 2 and "ONNX file cannot be pruned" in said.err


def test_a_model_in_which_nothing_can_go_is_an_error_with_the_reason():
    model = nn.Linear(8, 3)
    with pytest.raises(Unsupported, match="nothing to remove") as error:
        karui.prune(karui.Task(model, inputs=torch.randn(4, 8)))
    assert "the model's output" in error.value.why


def test_the_users_model_is_left_as_it_was_and_its_modes_are_kept():
    model = jobs.mlp().train()
    before = jobs.portrait(model)
    found = karui.prune(karui.Task(model, select=jobs.labelled(jobs.mlp(), 8)), "prune_channels:ratio=0.25")
    assert jobs.portrait(model) == before
    assert found.model is not model and found.model.training
    assert found.model[0].out_features == 24
    assert found.facts["kept"] == {"0.weight[0]": "24 of 32"}


def test_scores_for_which_less_is_better_and_whole_set_scores():
    inputs = torch.randn(300, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        targets = jobs.mlp()(inputs)
    found = karui.prune(karui.Task(jobs.mlp(), select=(inputs, targets), score="mse")).facts["score"]
    assert found["before"] == 0.0 < found["after"] == pytest.approx(found["drop"])
    assert not found["points"]

    def whole(outputs, targets):
        return -(outputs - targets).square().mean()

    found = karui.prune(karui.Task(jobs.mlp(), select=(inputs, targets), score=whole)).facts["score"]
    assert found["low"] <= found["drop"] <= found["high"]


def test_other_techniques_and_several_steps_are_refused():
    task = karui.Task(jobs.mlp(), inputs=torch.randn(4, 8))
    with pytest.raises(UsageError, match="one technique"):
        karui.prune(task, "prune_channels + fold_norm")
    norms = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(UsageError, match="removes nothing"):
        karui.prune(karui.Task(norms, inputs=torch.randn(2, 1, 5, 5)), "fold_norm")
    with pytest.raises(UsageError, match="neither data nor inputs"):
        karui.prune(karui.Task(jobs.mlp()))
