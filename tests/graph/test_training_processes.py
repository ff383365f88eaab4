"""Trainings that are killed, and trainings that several processes share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def run(out: Path, *words: str) -> int:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "trainings.py"), str(out), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


@pytest.mark.gate
@pytest.mark.parametrize("words", [(), ("precision=16-mixed", "patience=20")], ids=["plain", "half"])
def test_a_killed_run_goes_on_to_the_very_same_weights(tmp_path, words):
    """Killed at step 72, in the middle of a pass, with the last checkpoint at 50, and once more at 121."""
    assert run(tmp_path / "whole.pt", *words) == 0
    folder = tmp_path / "kept"
    for step in (72, 121):
        assert run(tmp_path / "broken.pt", f"folder={folder}", f"kill={step}", *words) == -9
        assert len(list(folder.iterdir())) == 1
        assert not (tmp_path / "broken.pt").exists()
    assert run(tmp_path / "broken.pt", f"folder={folder}", *words) == 0
    whole, broken = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "broken"))
    assert whole["told"] == broken["told"]
    assert all(torch.equal(one, broken["model"][name]) for name, one in whole["model"].items())


@pytest.mark.gate
def test_two_processes_learn_what_one_learns(tmp_path):
    for devices in (1, 2):
        assert run(tmp_path / f"{devices}.pt", f"devices={devices}", "norm=0") == 0
    one, two = (torch.load(tmp_path / f"{devices}.pt") for devices in (1, 2))
    assert one["told"]["steps"] == two["told"]["steps"]
    assert one["told"]["loss"] == pytest.approx(two["told"]["loss"], rel=1e-3)
    for name, weight in one["model"].items():
        torch.testing.assert_close(weight, two["model"][name], rtol=1e-3, atol=1e-4)
