"""The measuring process: the same answers whatever the batch, and timings of single calls."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from arrays import WEIGHT, make_artifact, make_data
from hypothesis import given, settings
from hypothesis import strategies as st

from karui import host
from karui.bench.candidate import Candidate
from karui.bench.machine import Conditions
from karui.bench.worker import Worker
from karui.data import open_arrays
from karui.errors import MeasureFailed, Tampered
from karui.process import Limits


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    make_artifact(folder / "artifact")
    make_data(folder / "data", batch=4)
    return folder


@pytest.fixture(scope="module")
def worker(home):
    one = Worker(home / "artifact", home / "data", 4, 1)
    one.answer({"do": "load"})
    return one


@given(batch=st.integers(1, 12), index=st.lists(st.integers(0, 49), min_size=1, max_size=30))
@settings(deadline=None, max_examples=40)
def test_answers_do_not_depend_on_how_rows_are_batched(home, worker, batch, index):
    rows, out = home / "data" / "select", home / "answers"
    worker.answer({"do": "outputs", "rows": str(rows), "batch": batch, "index": index, "out": str(out)})
    found = open_arrays(out)
    assert list(found) == ["y"]
    x = open_arrays(rows)["x"]
    assert np.allclose(found["y"], x[index] @ WEIGHT, atol=1e-5)


def test_load_and_first_call_are_told_apart(home):
    found = Worker(home / "artifact", home / "data", 4, 1).answer({"do": "load"})
    assert set(found) == {"load_s", "first_call_s", "stands_in", "verified_as"}
    assert found["load_s"] > 0 and found["first_call_s"] > 0
    assert found["stands_in"] == ""  # the runtime itself answers
    assert found["verified_as"] == "verified on runtime"


def test_timing(worker):
    warm = worker.answer({"do": "warm", "seconds": 1.0})
    assert warm["call_s"] > 0
    found = worker.answer({"do": "time", "calls": 100})
    assert len(found["samples_s"]) <= 100
    assert all(0 < sample < 0.1 for sample in found["samples_s"])


def test_a_worker_loads_no_torch_for_a_runtime_that_needs_none(home):
    code = (
        "import sys\nfrom pathlib import Path\nfrom karui.bench.worker import Worker\n"
        f"home = Path({str(home)!r})\nworker = Worker(home / 'artifact', home / 'data', 4, 1)\n"
        "worker.answer({'do': 'load'})\nworker.answer({'do': 'time', 'calls': 5})\n"
        "print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.fixture
def candidate(home, tmp_path):
    from karui.artifact import load_artifact

    one = Candidate(
        load_artifact(home / "artifact"),
        home / "data",
        tmp_path / "home",
        Conditions(4, 1, Limits(seconds=60.0)),
    )
    yield one
    one.close()


def test_the_parents_view(home, candidate):
    candidate.load()
    assert candidate.load_s > 0
    answers = candidate.outputs(home / "data" / "select", 4, [0, 1, 2, 3, 4])
    assert answers[0].shape == (5, 3)
    with pytest.raises(MeasureFailed, match="must be warm"):
        candidate.time(0.005)
    candidate.warm()
    assert candidate.time(0.005)["samples_s"]
    assert candidate.peak_memory_bytes > 1_000_000
    assert [path.name for path in candidate.home.iterdir()] == ["worker.log"]  # the answers are gone again


@pytest.mark.skipif(len(host.cpus()) < 2, reason="one CPU only")
def test_a_pinned_worker_stays_on_its_cpus_with_all_its_threads(candidate):
    candidate.load()
    cpu = host.cpus()[-1]
    candidate.pin([cpu])
    threads = os.listdir(f"/proc/{candidate.child.process.pid}/task")
    assert {frozenset(os.sched_getaffinity(int(thread))) for thread in threads} == {frozenset([cpu])}
    candidate.warm()
    assert candidate.time(0.005)["samples_s"]


def test_a_tampered_artifact_is_not_opened(tmp_path):
    artifact = make_artifact(tmp_path / "artifact")
    make_data(tmp_path / "data")
    (tmp_path / "artifact" / "model.onnx").write_bytes(b"other")
    with pytest.raises(Tampered):
        Worker(artifact.folder, tmp_path / "data", 1, 1)
    one = Candidate(artifact, tmp_path / "data", tmp_path / "home", Conditions(1, 1, Limits(seconds=60.0)))
    with pytest.raises(MeasureFailed, match="worker process ended"):
        one.load()
    one.close()
