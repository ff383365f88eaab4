"""``karui optimize --search``: recipes composed after the list, and what else than latency may be least."""

from __future__ import annotations

import json
import sys

import jobs
import pytest

pytestmark = pytest.mark.gate
LISTED = ["--recipe", "fp32@onnxruntime", "--recipe", "int8_dynamic@onnxruntime"]


@pytest.fixture
def task_file(tmp_path):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    return "job.py:task"


def test_composed_recipes_follow_the_list_and_the_smallest_is_chosen(cli, task_file):
    pytest.importorskip("optuna")
    words = [task_file, *LISTED, "--runtimes", "onnxruntime", "--pace", "quick", "--max-drop", "30"]
    said = cli("optimize", *words, "--search", "2", "--objective", "size", "--json", "--out", "run")
    facts = json.loads(said.out)
    recipes = [trial["recipe"] for trial in facts["trials"]]
    listed = ["fp32@torch_eager", "fp32@onnxruntime", "int8_dynamic@onnxruntime"]
    assert recipes[:3] == listed and len(set(recipes)) == 5
    assert all(recipe.endswith("@onnxruntime") for recipe in recipes[3:])
    sizes = {trial["id"]: trial["size_bytes"] for trial in facts["trials"] if trial["status"] == "kept"}
    assert sizes[facts["best"]] <= 1.01 * min(sizes.values())
    assert facts["budget"]["objective"] == "size"
    assert "of the original's size, within the accuracy budget" in facts["verdict"]["headline"]


@pytest.mark.parametrize("option", ["--search", "--mixed", "--screen"])
def test_less_than_no_recipe_is_refused(cli, task_file, tmp_path, option):
    said = cli("optimize", task_file, *LISTED, option, "-1", "--out", "run")
    assert said.code == 2 and "number of recipes, not -1" in said.err and "try: 0 for none" in said.err
    assert not (tmp_path / "run").exists()


def test_a_search_without_its_package_is_refused_before_anything_is_built(
    cli, task_file, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "karui.search.sample", raising=False)
    said = cli("optimize", task_file, *LISTED, "--search", "2", "--out", "run")
    assert said.code == 4 and "pip install 'karui[search]'" in said.err
    assert not (tmp_path / "run").exists()
