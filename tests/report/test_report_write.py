from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import sample

from karui.report import html as page
from karui.report import write


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "draw", lambda run: ({}, ""))


def test_three_files_and_nothing_else(tmp_path: Path) -> None:
    made = write(sample.full(), tmp_path / "new")
    assert [path.name for path in made] == ["report.html", "report.md", "result.json"]
    assert sorted(os.listdir(tmp_path / "new")) == ["report.html", "report.md", "result.json"]
    assert json.loads(made[2].read_text("utf-8")) == sample.full()


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    result = sample.full()
    result["trials"][3]["quality"]["value"] = float("nan")
    made = write(result, tmp_path)
    stored = json.loads(made[2].read_text("utf-8"), parse_constant=pytest.fail)
    assert stored["trials"][3]["quality"]["value"] is None


def test_a_failed_write_leaves_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(sample.full(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(sample.minimal(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
