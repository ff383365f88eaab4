"""Runtimes that misbehave: each becomes a failed row with its reason, and the run goes on."""

from __future__ import annotations

import sys

import jobs
import pytest
import torch

import karui
from karui.errors import MissingRuntime
from karui.process import Limits
from karui.target import Target

pytestmark = pytest.mark.gate

RUNTIME = '''
"""A runtime from another package, that misbehaves."""
{header}
import ctypes, os, time
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from karui.runtimes import Built, Runtime


@final
@dataclass(frozen=True)
class Bad(Runtime):
    def refuses(self, ask):
        return None

    def casts_in_torch(self, precision):
        return False

    def lacks(self):
        {lacks}

    def build(self, source, folder):
        (folder / "model.txt").write_text("a model")
        {build}
        return Built({{"precision": "fp32", "detail": "test"}})

    def load(self, folder, signature, threads):
        {load}

        def predict(arrays):
            rows = len(next(iter(arrays.values())))
            found = [np.zeros((rows, *port.shape[1:]), port.dtype) for port in signature.outputs]
            {predict}
            return found

        return predict
'''

# name -> (where, code, what the reason must say)
BAD = {
    "crashing_builder": ("build", "ctypes.string_at(0)", "the builder process ended with SIGSEGV"),
    "segfaulting": ("predict", "ctypes.string_at(0)", "the worker process ended with SIGSEGV"),
    "leaving": ("load", "print('no more of this', flush=True); os._exit(3)", "exit code 3: no more of this"),
    "hanging": ("load", "time.sleep(3600)", "the worker gave no answer in 20 s and was stopped"),
    "hungry": (
        "load",
        "hoard = [np.ones(100 << 20, np.uint8) for _ in range(30)]; time.sleep(3600)",
        "used more than 1.5 GB of memory and was stopped",
    ),
    "raising": ("predict", "raise ValueError('not today')", "ValueError: not today"),
    "not_a_number": ("predict", "found[0][:] = np.nan", "NaN or infinite values"),
    "misshapen": ("predict", "found[0] = found[0][:, :1]", "shape (1,) instead of (3,)"),
    "wrong": ("predict", "pass", "close to the original"),
    "moody": ("predict", "found[0] += np.random.rand(*found[0].shape)", "the second answer differs"),
    "lazy_builder": ("build", "raise MemoryError('no room')", "MemoryError: no room"),
}
UNUSABLE = {
    "absent": ("import a_package_that_is_not_there", "not installed: pip install 'karui[absent]'"),
    "broken": ("1 / 0", "broken cannot be used: ZeroDivisionError"),
    "halved": ("", "not installed: fetch the other half"),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package that brings runtimes by entry points, as an installed one would."""
    folder = tmp_path_factory.mktemp("package")
    info = folder / "bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    names = [*BAD, *UNUSABLE]
    entries = "".join(f"{name} = bad_{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[karui.runtimes]\n{entries}")
    for name in names:
        where, code, _ = BAD.get(name, ("load", "pass", ""))
        header = UNUSABLE.get(name, ("", ""))[0]
        lacks = "return 'fetch the other half'" if name == "halved" else "return ''"
        parts = {"build": "pass", "load": "pass", "predict": "pass"} | {where: code}
        parts |= {"header": header, "lacks": lacks}
        (folder / f"bad_{name}.py").write_text(RUNTIME.format(**parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.syspath_prepend(folder)
        yield folder
    for name in names:
        sys.modules.pop(f"bad_{name}", None)


@pytest.fixture(scope="module")
def outcome(package, tmp_path_factory):
    """One run over all of them, of a TorchScript module, with the module as it was before and after."""
    with pytest.warns(DeprecationWarning):
        model = torch.jit.trace(jobs.mlp(), torch.randn(2, 8))
    task = karui.Task(model=model, select=jobs.labelled(model, 8))
    before = jobs.portrait(task.model)
    recipes = ["fp32@onnxruntime", *(f"fp32@{name}" for name in [*BAD, *UNUSABLE])]
    limits = Limits(seconds=20.0, bytes=1_500_000_000)
    result = karui.optimize(
        task, out=tmp_path_factory.mktemp("bad") / "run", settings=jobs.quick(*recipes, limits=limits)
    )
    return result, before == jobs.portrait(task.model)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_runtime_is_a_failed_row_with_its_reason(outcome, name):
    rows = {row["runtime"]: row for row in outcome[0].facts["trials"]}
    assert rows[name]["status"] == "failed"
    assert BAD[name][2] in rows[name]["reason"]
    assert rows[name]["speedup"] is None


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_runtime_that_cannot_be_imported_costs_no_trial(outcome, name):
    refused = {row["runtime"]: row["reason"] for row in outcome[0].facts["refused"]}
    assert UNUSABLE[name][1] in refused[name]
    assert name not in {row["runtime"] for row in outcome[0].facts["trials"]}


def test_the_run_ends_well_all_the_same(outcome):
    result, untouched = outcome
    assert result.exit_code == 0
    assert result.facts["best"] == "onnxruntime-fp32"
    assert untouched
    assert all(name in result.table() for name in BAD)


def test_a_later_good_trial_is_not_harmed_by_a_dead_builder(outcome):
    rows = [row["runtime"] for row in outcome[0].facts["trials"]]
    assert rows.index("crashing_builder") < rows.index("segfaulting")  # the builder had to be started again


@pytest.mark.parametrize(
    ("name", "remedy"), [("absent", "pip install 'karui[absent]'"), ("halved", "fetch the other half")]
)
def test_a_missing_runtime_that_was_asked_for_is_exit_code_4(package, cli, tmp_path, name, remedy):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    for words in (["--runtimes", name], ["--recipe", f"fp32@{name}"]):
        said = cli("optimize", "job.py:task", "--out", "run", *words)
        assert said.code == 4
        assert remedy in said.err
        assert "Traceback" not in said.err
        assert not (tmp_path / "run").exists()
    with pytest.raises(MissingRuntime):
        karui.optimize(jobs.mlp_task(), Target(runtimes=(name,)), out=tmp_path / "run")


def test_doctor_tells_of_them(package, cli):
    said = cli("doctor")
    assert said.code == 0
    assert "not installed: pip install 'karui[absent]'" in said.out
    assert "ZeroDivisionError" in said.out
