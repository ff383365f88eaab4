"""Adding a runtime or a technique is one file: listed, read from text and conformance-tested at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import karui

HERE = Path(__file__).parent
RUNTIME = '''
"""A second way to run a program eagerly, made by a test."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import final

from karui.graph.program import open_program, predictor
from karui.runtimes import Ask, Built, Runtime, Source


@final
@dataclass(frozen=True)
class Parrot(Runtime):
    loud: bool = False

    def refuses(self, ask: Ask) -> str | None:
        return None if ask.numerics.default == "fp32" else "parrots speak full precision only"

    def casts_in_torch(self, precision: str) -> bool:
        return False

    def build(self, source: Source, folder: Path) -> Built:
        shutil.copyfile(source.folder / "model.pt2", folder / "model.pt2")
        return Built({"precision": "fp32", "detail": "repeated"})

    def load(self, folder: Path, signature, threads: int):
        return predictor(open_program(folder / "model.pt2"), signature)
'''
TECHNIQUE = '''
"""Leaves everything as it is, made by a test. Nobody et al. 2024."""

from dataclasses import dataclass
from typing import final

from karui.techniques import Applied, Given, Technique


@final
@dataclass(frozen=True)
class Idle(Technique):
    hours: float = 1.0

    def apply(self, model, data: Given) -> Applied:
        return Applied(model, (), {path: "idle" for path, _ in model.named_children()})
'''
LISTED = """
from karui import runtimes, techniques
from karui.recipe import parse_recipe
recipe = parse_recipe("idle:hours=2.5 + fp32@parrot:loud=true")
print(runtimes.names(), techniques.names(), runtimes.load(recipe.runtime), techniques.load(recipe.steps[0]))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> dict[str, str]:
    """The environment in which a copy of karui with two more files is found first."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(
        Path(karui.__file__).parent, folder / "karui", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "karui/runtimes/parrot.py").write_text(RUNTIME)
    (folder / "karui/techniques/idle.py").write_text(TECHNIQUE)
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=HERE.parent.parent, capture_output=True, text=True
    )


@pytest.mark.gate
def test_a_new_file_is_listed_and_read_from_text(elsewhere):
    done = run(elsewhere, "-c", LISTED)
    assert done.returncode == 0, done.stderr
    assert "'parrot'" in done.stdout and "'idle'" in done.stdout
    assert "Parrot(loud=True) Idle(hours=2.5)" in done.stdout


@pytest.mark.gate
def test_a_new_file_is_conformance_tested(elsewhere):
    suites = [str(HERE / "test_runtimes.py"), str(HERE / "test_techniques.py")]
    done = run(elsewhere, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-k", "parrot or idle", *suites)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") > 15 and "FAILED" not in done.stdout
    assert "test_fp32_agrees_with_eager_and_two_calls_are_bit_equal[dicts-parrot]" in done.stdout
    assert "test_the_result_has_the_same_form_and_can_be_captured[cnn-idle]" in done.stdout
