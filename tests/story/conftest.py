"""One finished run that many stories read, and ways to call the command line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest

import karui
from karui.cli.main import main

os.environ["OMP_NUM_THREADS"] = "1"
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a shell's background, and children would be so too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Said:
    """What one call of the command line gave."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A finished run of an MLP, in FP32 and INT8. To be read only; copy it to change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    model = jobs.mlp()
    task = karui.Task(model=model, select=jobs.clear(model, jobs.labelled(model, 8, rows=500)[0]), name="mlp")
    karui.optimize(task, max_drop=5, out=folder, settings=jobs.quick(*jobs.FLOAT_AND_INT8))
    return folder


@pytest.fixture
def copied_run(run_folder, tmp_path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Call the command line in this process, in an empty folder; paths and modules are put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def call(*words: object) -> Said:
        argv = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["karui", *argv])
        try:
            code = main(argv)
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    yield call
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def start(*words: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen:
    """``python -m karui`` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "karui", *map(str, words)],
        cwd=cwd,
        env=dict(os.environ) | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def shell():
    """Start the command line as a process of its own; it is ended with the test."""
    started: list[subprocess.Popen] = []

    def call(*words: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen:
        started.append(start(*words, cwd=cwd, env=env))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()
