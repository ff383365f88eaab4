"""``karui lock`` and ``karui verify --lock``: a gate that needs no run, and errors that say what is wrong."""

from __future__ import annotations

import json
import shutil

import jobs
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from karui.artifact import load_artifact, save_artifact
from karui.bench import gate
from karui.cli.main import main
from karui.optimize.lock import read_lock, write_lock

pytestmark = pytest.mark.gate


def artifact_of(run, name="onnxruntime-int8"):
    return run / "trials" / name / "artifact"


@pytest.fixture(scope="module")
def locked(run_folder, tmp_path_factory):
    """The lock of the INT8 artifact, timed in few openings; its calls are so short that 5 % would take more.

    To be read only.
    """
    path = tmp_path_factory.mktemp("lock") / "karui.lock"
    options = ["--openings", "4", "--max-slower", "50%", "--against", "same_runtime"]
    assert main(["lock", str(artifact_of(run_folder)), "-o", str(path), *options]) == 0
    return path


def changed(lock, folder, **parts):
    """A lock with other contents, sealed as if it had been made so."""
    facts = {key: value for key, value in read_lock(lock).items() if key not in ("schema", "digest")}
    path = folder / "changed.lock"
    write_lock({**facts, **parts}, path, force=True)
    return path


def disturb(folder):
    """Turn the sign of all weights, and write a manifest that agrees."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path)
    save_artifact(load_artifact(folder, check=False))


def verdicts(said):
    facts = json.loads(said.out)
    return facts["verdict"], {check["name"]: check["verdict"] for check in facts["checks"]}


def test_the_lock_is_small_names_the_data_and_stays_unless_forced(cli, run_folder, locked, tmp_path):
    facts = read_lock(locked)
    assert locked.stat().st_size < 20_000
    assert facts["data"]["samples"] == facts["score"]["outcomes"]["n"] > 100
    assert facts["score"]["outcomes"]["form"] == "bits"
    assert [row["against"] for row in facts["speed"]] == ["same_runtime"]
    mine = tmp_path / "mine.lock"
    mine.write_text("not to be lost")
    said = cli("lock", artifact_of(run_folder), "-o", mine, "--no-speed")
    assert (said.code, mine.read_text()) == (2, "not to be lost")
    assert "--force" in said.err
    assert cli("lock", artifact_of(run_folder), "-o", mine, "--no-speed", "--force").code == 0
    assert read_lock(mine)["speed"] == []


def test_an_unchanged_artifact_is_as_locked(cli, run_folder, locked):
    said = cli("verify", artifact_of(run_folder), "--lock", locked, "--json")
    verdict, found = verdicts(said)
    assert (said.code, verdict) == (0, "as locked"), said.out
    assert set(found) == {"files", "size", "answers", "score", "budget", "speed"}
    assert set(found.values()) == {"as locked"}


def test_a_shipped_copy_is_verified_with_data_and_without_the_run(cli, run_folder, locked, tmp_path):
    model = jobs.mlp()
    inputs, labels = jobs.clear(model, jobs.labelled(model, 8, rows=500)[0])
    np.savez(tmp_path / "data.npz", inputs=inputs.numpy(), labels=labels.numpy())
    (tmp_path / "data.py").write_text(jobs.DATA_FILE)
    assert cli("export", artifact_of(run_folder), "--to", tmp_path / "shipped.zip").code == 0
    words = ("verify", tmp_path / "shipped.zip", "--lock", locked, "--data", "data.py:both")
    said = cli(*words)
    assert said.code == 2 and "--beside" in said.err  # what to time against?
    assert cli(*words, "--beside", artifact_of(run_folder, "torch_eager-fp32")).code == 2  # not that
    said = cli(*words, "--beside", artifact_of(run_folder, "onnxruntime-fp32"), "--markdown")
    assert said.code == 0, said.out
    assert said.out.startswith("**as locked** `int8@onnxruntime`: ") and said.out.count("\n") == 1
    (tmp_path / "data.py").write_text(jobs.DATA_FILE + "\nfewer = both[0][1:], both[1][1:]\n")
    said = cli("verify", tmp_path / "shipped.zip", "--lock", locked, "--data", "data.py:fewer", "--no-speed")
    assert said.code == 2
    assert "these are not the data of the lock" in said.err


def test_a_changed_artifact_is_a_regression_and_a_rebuilt_one_is_judged_by_what_it_does(
    cli, copied_run, locked
):
    shutil.copy(locked, copied_run.parent / "karui.lock")
    words = ("verify", artifact_of(copied_run), "--lock", "karui.lock", "--no-speed", "--json")
    disturb(artifact_of(copied_run))
    verdict, found = verdicts(cli(*words))
    assert (verdict, found["files"]) == ("regression", "regression")
    said = cli(*words, "--rebuilt")
    verdict, found = verdicts(said)
    assert (said.code, verdict, found["files"], found["score"]) == (6, "regression", "told", "regression")
    with (artifact_of(copied_run) / "model.onnx").open("ab") as file:
        file.write(b" ")
    said = cli(*words)
    assert (said.code, verdicts(said)[1]) == (6, {"files": "regression"})


def test_a_slower_one_is_a_regression_and_noise_is_undecided(cli, run_folder, locked, tmp_path, monkeypatch):
    (row,) = read_lock(locked)["speed"]
    words = ("verify", artifact_of(run_folder), "--json", "--lock")
    faster = row | {"openings": [ratio + 1 for ratio in row["openings"]]}
    said = cli(*words, changed(locked, tmp_path, speed=[faster]))
    assert (said.code, verdicts(said)[1]["speed"]) == (6, "regression")
    monkeypatch.setattr(gate, "LOOKS", (4,))
    wild = row | {"openings": [ratio + 2 * (-1) ** i for i, ratio in enumerate(row["openings"])]}
    host = read_lock(locked)["host"] | {"cpu": "another"}
    said = cli(*words, changed(locked, tmp_path, speed=[wild], host=host), "--any-host")
    assert (said.code, verdicts(said)[1]["speed"]) == (5, "undecided")


def test_on_another_machine_speed_is_told_and_not_judged(cli, run_folder, locked, tmp_path):
    facts = read_lock(locked)
    (row,) = facts["speed"]
    faster = row | {"openings": [ratio + 1 for ratio in row["openings"]]}
    other = changed(locked, tmp_path, speed=[faster], host=facts["host"] | {"cpu": "another"})
    said = cli("verify", artifact_of(run_folder), "--lock", other, "--json")
    assert (said.code, verdicts(said)[1]["speed"]) == (0, "told")
    assert any(note.startswith("cpu: another then") for note in json.loads(said.out)["notes"])


def test_what_is_wrong_with_a_lock_is_said(cli, run_folder, locked, tmp_path):
    def refused(text, artifact=None):
        path = tmp_path / "wrong.lock"
        path.write_text(text)
        said = cli("verify", artifact or artifact_of(run_folder), "--lock", path, "--no-speed")
        assert said.code == 2 and not said.out
        return said.err

    text = locked.read_text()
    assert "is not as it was written" in refused(text.replace('"slower": 0.5', '"slower": 0.9'))
    assert "cannot be read" in refused(text[:-20])
    assert "unknown schema 'karui.lock/9'" in refused(text.replace("karui.lock/1", "karui.lock/9"))
    assert "unknown schema None" in refused("[]")
    other = artifact_of(run_folder, "onnxruntime-fp32")
    assert "it is of int8@onnxruntime, and this is fp32@onnxruntime" in refused(text, other)
    elsewhere = changed(locked, tmp_path, data=read_lock(locked)["data"] | {"fingerprint": "0" * 64})
    assert "these are not the data of the lock" in refused(elsewhere.read_text())
    assert "no lock file" in cli("verify", artifact_of(run_folder), "--lock", tmp_path / "none").err


def test_words_that_do_not_go_together_are_refused(cli, run_folder, locked):
    said = cli("verify", artifact_of(run_folder), "--rebuilt", "--any-host")
    assert said.code == 2 and "--rebuilt, --any-host is for verifying against a lock" in said.err
    both = ("--run", run_folder, "--data", "data.py:both")
    assert cli("verify", artifact_of(run_folder), "--lock", locked, *both).code == 2
    for words in (("--openings", "3"), ("--max-slower", "5"), ("--max-slower", "0%")):
        assert cli("lock", run_folder, "-o", "new.lock", *words).code == 2


def test_agreement_stands_in_for_a_score_of_the_users_own(cli, copied_run, tmp_path):
    path = copied_run / "result.json"
    facts = json.loads(path.read_text())
    facts["task"] |= {"score": "mine", "share": False}
    path.write_text(json.dumps(facts))
    assert cli("lock", artifact_of(copied_run), "--no-speed").code == 0
    score = read_lock(tmp_path / "karui.lock")["score"]
    assert (score["name"], score["stands_in"], score["value"], score["budget"]) == (
        "agreement",
        "mine",
        1,
        None,
    )
    assert cli("verify", artifact_of(copied_run), "--lock", "karui.lock").code == 0
