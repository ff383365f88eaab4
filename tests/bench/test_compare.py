"""Finished artifacts side by side: only time is compared, and nothing is written beside them."""

from __future__ import annotations

import numpy as np
import pytest
from arrays import make_artifact

from karui.bench.compare import compare
from karui.bench.machine import Conditions
from karui.bench.rounds import Pace
from karui.errors import MeasureFailed, UsageError
from karui.process import Limits

SHORT, LIMITS = Pace(least=5, most=8, seconds=0.5), Limits(seconds=60.0)


def test_two_artifacts(tmp_path):
    for name in ("a", "b"):
        make_artifact(tmp_path / name)
    (tmp_path / "answers").mkdir()
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    first, second = compare([tmp_path / "a", tmp_path / "b"], Conditions(4, 1, LIMITS), SHORT)
    assert first["speedup"] == {"ratio": 1.0, "low": 1.0, "high": 1.0, "verdict": "baseline"}
    assert second["speedup"]["low"] <= second["speedup"]["ratio"] <= second["speedup"]["high"]
    assert second["speedup"]["verdict"] != "baseline"
    assert second["latency_s"]["p50"] > 0
    assert first["recipe"] == "fp32@onnxruntime"
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_artifacts_of_different_models_are_refused(tmp_path):
    make_artifact(tmp_path / "a")
    make_artifact(tmp_path / "b", np.ones((9, 3), np.float32), width=9)
    with pytest.raises(UsageError, match="different inputs"):
        compare([tmp_path / "a", tmp_path / "b"], Conditions(1, 1, LIMITS), SHORT)


def test_one_that_does_not_run_is_told(tmp_path):
    make_artifact(tmp_path / "a")
    broken = make_artifact(tmp_path / "b", np.ones((5, 3), np.float32))  # does not fit its own input
    with pytest.raises(MeasureFailed):
        compare([tmp_path / "a", broken.folder], Conditions(1, 1, LIMITS), SHORT)
