"""How sure it has to be that no more is lost than the budget allows."""

from __future__ import annotations

import jobs
import pytest
import torch

import karui

INT8 = "int8_dynamic@onnxruntime"


@pytest.fixture(scope="module")
def task() -> karui.Task:
    """Sixty samples of which INT8 changes none; some choose, the others confirm."""
    model = jobs.mlp()
    many = torch.randn(2000, 8, generator=torch.Generator().manual_seed(2))
    inputs, labels = jobs.clear(model, many, rows=60)
    return karui.Task(model, select=(inputs, labels))


def run(task: karui.Task, folder, confidence: float) -> karui.Result:
    budget = karui.Budget(max_drop=5, confidence=confidence)
    return karui.optimize(task, budget=budget, out=folder, settings=jobs.quick(INT8))


def test_a_small_set_leaves_undecided_what_less_confidence_keeps(task, tmp_path):
    sure, less = (run(task, tmp_path / str(level), level).facts for level in (0.95, 0.5))
    small, kept = (next(t for t in facts["trials"] if t["recipe"] == INT8) for facts in (sure, less))
    assert small["quality"]["drop"] == kept["quality"]["drop"] == 0
    assert [small["status"], kept["status"]] == ["rejected", "kept"] and "undecided" in small["reason"]
    assert [facts["budget"]["confidence"] for facts in (sure, less)] == [0.95, 0.5]
    assert less["confirm"]["looks"] and less["confirm"]["looks"][0]["verdict"] in ("within", "baseline")
    told = [(tmp_path / level / "report.md").read_text() for level in ("0.95", "0.5")]
    assert ["% sure" in text for text in told] == [False, True] and "50 % sure" in told[1]


@pytest.mark.parametrize("level", ["0", "0.4", "1", "nan"])
def test_a_confidence_that_cannot_be_is_refused(cli, tmp_path, level):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    said = cli("optimize", "job.py:task", "--confidence", level, "--out", "run")
    assert said.code == 2 and "confidence lies from 0.5 to below 1" in said.err
    assert not (tmp_path / "run").exists()
