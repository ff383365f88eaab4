"""The Python surface and the verbs that read a finished run."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import jobs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import karui
from karui.artifact import Artifact
from karui.cli.resume import newest_unfinished
from karui.optimize.result import open_result

pytestmark = pytest.mark.gate

TOP = ("schema", "task", "target", "budget", "host", "baseline", "best", "trials")
ROW = ("id", "recipe", "runtime", "status", "reason", "size_bytes", "artifact")
INNER = {
    "latency_s": ("p50", "p90"),
    "speedup": ("ratio", "low", "high", "verdict"),
    "speedup_same_runtime": ("ratio", "low", "high", "verdict"),
    "quality": ("value", "drop", "low", "high", "verdict"),
}


@pytest.fixture(scope="module")
def result(run_folder):
    return open_result(run_folder)


def test_the_result_document_has_every_promised_key(result):
    facts = json.loads(result.to_json())
    assert facts["schema"] == "karui.result/1"
    assert all(key in facts for key in TOP)
    ids = {row["id"] for row in facts["trials"]}
    assert {facts["baseline"], facts["best"], *facts["pareto"]} <= ids
    for row in facts["trials"]:
        assert all(key in row for key in (*ROW, *INNER))
        assert row["status"] in ("kept", "rejected", "failed")
        for name, keys in INNER.items():
            assert all(key in row[name] for key in keys), (row["id"], name)
        assert (result.folder / row["artifact"] / "manifest.json").is_file()
        assert (result.folder / row["log"]).is_file()
        assert row["latency_s"]["p50"] <= row["latency_s"]["p90"]
        assert row["speedup"]["low"] <= row["speedup"]["ratio"] <= row["speedup"]["high"]


def test_the_parts_of_a_result(result, tmp_path):
    assert isinstance(result.best, Artifact)
    assert result.exit_code == 0
    table = result.table()
    assert all(row["recipe"] in table for row in result.facts["trials"])
    written = result.report(tmp_path / "report")
    assert sorted(path.name for path in written) == ["report.html", "report.md", "result.json"]
    assert json.loads((tmp_path / "report" / "result.json").read_text())["best"] == result.facts["best"]
    assert all(path.stat().st_size < 2_000_000 for path in written)


def test_the_artifact_is_vanilla(result):
    import numpy as np
    import onnxruntime

    folder = result.folder / "trials" / "onnxruntime-fp32" / "artifact"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    (answer,) = session.run(None, {session.get_inputs()[0].name: x})
    with torch.no_grad():
        assert np.allclose(answer, jobs.mlp()(torch.from_numpy(x)), atol=1e-5)


@pytest.mark.parametrize("name", ["optimize", "bench"])
def test_the_functions_stay_functions_after_their_rooms_were_imported(name):
    code = (
        f"import karui, karui.{name}\nfrom karui.optimize import Settings\nimport karui.bench.rounds\n"
        f"assert callable(karui.{name})\nkarui.optimize, karui.bench\nassert callable(karui.{name})\n"
        "from karui import optimize, bench\nassert callable(optimize) and callable(bench)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "karui", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("karui ")


# looking at models


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=5), share=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_sparsity_and_size_of_random_networks(sizes, share, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(*[nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])
    count = sum(a * b + b for a, b in zip(sizes, sizes[1:]))
    assert karui.size_bytes(model) == 4 * count
    zeros = 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand(parameter.shape) < share] = 0
            zeros += int((parameter == 0).sum())
    assert karui.sparsity(model) == zeros / count
    tied = nn.Sequential(model, model)
    assert karui.size_bytes(tied) == 4 * count
    assert karui.sparsity(tied) == karui.sparsity(model)


def test_nothing_is_neither_sparse_nor_large():
    assert karui.sparsity(nn.ReLU()) == 0.0
    assert karui.size_bytes(nn.ReLU()) == 0


class Normed(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.conv, self.norm, self.drop = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.1)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3))


@pytest.mark.parametrize("what", ["fold_norm", "fold_norm + fp32@onnxruntime"])
def test_apply_changes_a_copy_and_says_what(what):
    torch.manual_seed(0)
    model = Normed().train()
    model.norm.eval()  # frozen while the rest trains
    before, x = jobs.portrait(model), torch.randn(3, 1, 6, 6)
    applied = karui.apply(what, model, inputs=x)
    assert jobs.portrait(model) == before
    assert applied.touched == ("conv",)
    assert isinstance(applied.skipped, dict)
    modes = {name: part.training for name, part in applied.model.named_modules()}
    assert (modes[""], modes["drop"], modes["norm"]) == (True, True, False)
    with torch.no_grad():
        assert torch.allclose(applied.model.eval()(x), model.eval()(x), atol=1e-5)


def test_apply_in_words_that_are_wrong():
    for what, words in (
        ("fold_nurm", "no technique"),
        ("fp32@onnxruntime", "no step"),
        ("fold_norm:x=1", "no option"),
    ):
        with pytest.raises(karui.KaruiError, match=words):
            karui.apply(what, jobs.mlp(), inputs=torch.randn(2, 8))


# verbs


def test_verbs_that_read_a_run_say_the_same(cli, copied_run, result, tmp_path):
    said = cli("show", copied_run, "--json")
    assert said.code == 0
    assert json.loads(said.out) == json.loads(result.to_json())
    said = cli("resume", copied_run, "--json")
    assert (said.code, json.loads(said.out)["best"]) == (0, result.facts["best"])
    assert cli("report", copied_run, "--to", "again").code == 0
    assert (tmp_path / "again" / "report.html").is_file()
    said = cli("show", copied_run / "trials" / "onnxruntime-fp32" / "artifact", "--json")
    assert json.loads(said.out)["recipe"] == "fp32@onnxruntime"


def test_doctor_as_json(cli):
    said = cli("doctor", "--json")
    facts = json.loads(said.out)
    assert said.code == 0
    assert facts["runtimes"]["torch_eager"] == "ready"
    assert "fold_norm" in facts["techniques"]
    assert facts["host"]["cores"] >= 1


def test_bench_needs_no_data(cli, tmp_path):
    jobs.write_files(tmp_path)
    words = ["--inputs", "2x8", "--pace", "quick", "--out", "run", "--json"]
    said = cli("bench", "net.onnx", *words, "--recipe", "int8_dynamic@onnxruntime")
    facts = json.loads(said.out)
    assert said.code == 0
    assert [row["id"] for row in facts["trials"]] == ["onnxruntime-fp32", "onnxruntime-int8_dynamic"]
    assert facts["task"]["score"] == "agreement"
    folders = [tmp_path / "run" / row["artifact"] for row in facts["trials"]]
    said = cli("bench", *folders, "--pace", "quick", "--json")
    compared = json.loads(said.out)
    assert (said.code, compared["schema"]) == (0, "karui.bench/1")
    assert [row["speedup"]["verdict"] == "baseline" for row in compared["rows"]] == [True, False]
    said = cli("bench", "net.onnx", folders[0])
    assert said.code == 2


def test_resume_alone_takes_the_newest_that_is_not_finished(cli, tmp_path):
    said = cli("resume")
    assert said.code == 2
    assert "no unfinished run" in said.err
    for name in ("one", "two"):
        (tmp_path / "karui-runs" / name).mkdir(parents=True)
        (tmp_path / "karui-runs" / name / "run.json").write_text("{}")
        time.sleep(0.01)
    assert newest_unfinished(tmp_path / "karui-runs").name == "two"


def test_a_script_from_init_says_what_to_fill_in(cli, tmp_path):
    assert cli("init").code == 0
    said = cli("optimize", "karui_task.py:task")
    assert said.code == 2
    assert "NotImplementedError" in said.err or "my_package" in said.err
    assert "karui_task.py, line" in said.err


def test_a_finished_run_holds_no_samples_of_the_user_in_its_artifacts(run_folder):
    assert not list(run_folder.glob("trials/*/artifact/**/*.npy"))
    assert not list(run_folder.glob("trials/*/answers"))
    assert not list(run_folder.glob("trials/*/reference"))
