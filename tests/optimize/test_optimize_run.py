"""Scores, limits and going on, on runs that are short because the model is a small ONNX file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import karui
from karui import journal
from karui.bench.rounds import Pace
from karui.budget import Budget
from karui.errors import UsageError
from karui.optimize import Settings

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((8, 3)).astype(np.float32)
X = RNG.standard_normal((240, 8)).astype(np.float32)
SHORT = Pace(least=4, most=6, seconds=0.3)
SETTINGS = Settings(recipes=("int8_dynamic@onnxruntime",), pace=SHORT, final=SHORT)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def accuracy(outputs, targets):
    """One number for the whole set."""
    return (outputs.argmax(1) == targets).float().mean()


def hits(outputs, targets):
    """One truth value per sample."""
    return outputs.argmax(1) == targets


LABELS = (X @ WEIGHT).argmax(1)
TASKS = {
    "whole set": (accuracy, (X, LABELS), {"max_drop": 10, "unit": "points"}, 1.0),
    "truth values": (hits, (X, LABELS), {"max_drop": 10, "unit": "points"}, 1.0),
    "mse": ("mse", (X, X @ WEIGHT + 1), {"max_drop": 10, "unit": "relative"}, 1.0),
    "agreement without labels": ("agreement", [X], {"max_drop": 10}, 1.0),
}


@pytest.mark.parametrize("kind", TASKS)
def test_scores_of_every_form(model, tmp_path, kind):
    score, data, budget, value = TASKS[kind]
    task = karui.Task(model=model, select=data, score=score)
    result = karui.optimize(task, budget=Budget(**budget), out=tmp_path / "run", settings=SETTINGS)
    base, int8 = result.facts["trials"]
    assert base["quality"]["verdict"] == "baseline"
    assert base["quality"]["value"] == pytest.approx(value, abs=1e-4)
    assert base["quality"]["drop"] == 0
    assert int8["quality"]["verdict"] == "within"
    assert int8["quality"]["low"] <= int8["quality"]["drop"] <= int8["quality"]["high"]
    assert result.facts["task"]["higher_is_better"] == (kind != "mse")
    assert result.exit_code in (0, 3)  # a product this small may not gain from INT8
    if kind == "whole set":
        again(model, task, result)


def again(model, task, result):
    """The same call goes on in the same folder; another job is refused and changes nothing there."""
    budget, before = Budget(max_drop=10), journal.read(result.folder)
    settings = dataclasses.replace(SETTINGS, seed=1)
    same = dict(budget=budget, out=result.folder)
    for changed in (
        lambda: karui.optimize(task, settings=settings, **same),
        lambda: karui.optimize(
            dataclasses.replace(task, select=(X[:-1], LABELS[:-1])), settings=SETTINGS, **same
        ),
        lambda: karui.optimize(task, budget=Budget(max_drop=9), out=result.folder, settings=SETTINGS),
    ):
        with pytest.raises(UsageError, match="belongs to another run"):
            changed()
    assert journal.read(result.folder) == before
    repeated = karui.optimize(task, settings=SETTINGS, **same)
    assert [t["id"] for t in repeated.facts["trials"]] == [t["id"] for t in result.facts["trials"]]
    assert [event["event"] for event in journal.read(result.folder)] == [
        "start",
        "trial",
        "trial",
        "end",
        "end",
    ]


def test_time_that_is_up_and_a_goal_that_is_met_leave_the_rest_untried(model, tmp_path):
    task = karui.Task(model=model, select=(X, LABELS))
    result = karui.optimize(task, budget=Budget(time_s=0.0), out=tmp_path / "run", settings=SETTINGS)
    assert [t["id"] for t in result.facts["trials"]] == ["onnxruntime-fp32"]
    assert result.facts["refused"] == [
        {
            "recipe": "int8_dynamic@onnxruntime",
            "runtime": "onnxruntime",
            "precision": "int8_dynamic",
            "reason": "the time was up",
        }
    ]
    assert result.exit_code == 3


def test_torch_is_told_apart_from_numpy(model, tmp_path):
    """A user's score gets torch tensors, as in a training script."""
    seen = []

    def score(outputs, targets):
        seen.append((type(outputs), type(targets)))
        return hits(outputs, targets)

    with pytest.raises(UsageError, match="no recipe can be tried"):
        karui.optimize(
            karui.Task(model=model, select=(X, LABELS), score=score),
            out=tmp_path / "run",
            settings=dataclasses.replace(SETTINGS, recipes=("bf16@onnxruntime",)),
        )
    assert set(seen) == {(torch.Tensor, torch.Tensor)}
    assert not (tmp_path / "run").exists()
