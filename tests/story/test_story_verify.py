"""``karui verify``: a worse model with a consistent manifest is found; nothing but the run is needed."""

from __future__ import annotations

import json
import shutil

import jobs
import onnx
import pytest
from onnx import numpy_helper

from karui.artifact import load_artifact, save_artifact

pytestmark = pytest.mark.gate


def artifact_of(run):
    return run / "trials" / "onnxruntime-fp32" / "artifact"


def worsen(folder):
    """Change one weight matrix, and write a manifest that agrees with it."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2]
    changed = numpy_helper.from_array(-numpy_helper.to_array(weights[-1]), weights[-1].name)
    weights[-1].CopyFrom(changed)
    onnx.save(model, path)
    known = load_artifact(folder, check=False)
    save_artifact(known)
    assert load_artifact(folder).files != known.files


def test_an_unchanged_artifact_passes(cli, copied_run):
    said = cli("verify", artifact_of(copied_run), "--no-speed", "--json")
    facts = json.loads(said.out)
    assert said.code == 0, said.out
    assert facts["ok"] is True
    assert {"form at batch 1", "score within the budget", "artifact unchanged by running"} <= {
        check["name"] for check in facts["checks"]
    }


def test_a_run_stands_for_its_best(cli, copied_run):
    facts = json.loads((copied_run / "result.json").read_text())
    said = cli("verify", copied_run, "--no-speed")
    best = next(row["recipe"] for row in facts["trials"] if row["id"] == facts["best"])
    assert said.code == 0
    assert said.out.startswith(f"{best}: as recorded")


def test_a_worse_model_is_a_regression(cli, copied_run):
    worsen(artifact_of(copied_run))
    assert cli("show", artifact_of(copied_run)).code == 0  # the files are as the manifest says
    said = cli("verify", artifact_of(copied_run), "--no-speed", "--json")
    facts = json.loads(said.out)
    failed = {check["name"] for check in facts["checks"] if not check["ok"]}
    assert said.code == 6
    assert facts["ok"] is False
    assert "score within the budget" in failed
    assert any(name.startswith("close to the original") for name in failed)
    assert "REGRESSION" in cli("verify", artifact_of(copied_run), "--no-speed").out


def test_a_slower_model_is_a_regression(cli, copied_run):
    path = copied_run / "result.json"
    facts = json.loads(path.read_text())
    for row in facts["trials"]:
        if row["id"] == "onnxruntime-fp32":
            row["speedup"] |= {"ratio": 1e6, "low": 0.9e6, "high": 1.1e6}
    path.write_text(json.dumps(facts))
    said = cli("verify", artifact_of(copied_run), "--json")
    failed = [check["name"] for check in json.loads(said.out)["checks"] if not check["ok"]]
    assert (said.code, failed) == (6, ["as fast as recorded"])


def test_copies_elsewhere_are_verified_and_their_neighbours_left_alone(cli, copied_run, tmp_path):
    shipped = tmp_path / "shipped"
    (shipped / "answers").mkdir(parents=True)
    (shipped / "answers" / "mine.txt").write_text("keep me")
    assert cli("export", artifact_of(copied_run), "--to", shipped / "model").code == 0
    assert cli("export", artifact_of(copied_run), "--to", shipped / "model.zip").code == 0
    before = jobs.contents(shipped)
    for what in ("model", "model.zip"):
        assert cli("verify", shipped / what, "--no-speed").code == 2  # which run?
        assert cli("verify", shipped / what, "--run", copied_run, "--no-speed").code == 0
    assert cli("export", artifact_of(copied_run), "--to", shipped / "bare", "--bare").code == 0
    assert [path.name for path in (shipped / "bare").iterdir()] == ["model.onnx"]
    shutil.rmtree(shipped / "bare")
    assert jobs.contents(shipped) == before


def test_an_artifact_of_another_recipe_has_no_record(cli, copied_run):
    folder = artifact_of(copied_run)
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(facts | {"recipe": "fp16@onnxruntime"}))
    said = cli("verify", folder, "--no-speed")
    assert said.code == 2
    assert "never made fp16@onnxruntime" in said.err
