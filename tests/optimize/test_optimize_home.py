"""The run folder: taken when it is ours, held, and left as it was when nothing came of it."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple

import pytest

from karui import journal
from karui.errors import KaruiError, UsageError
from karui.optimize.home import check_room, run_folder

WORDS = {"options": {"task": "job.py:task"}}


def test_words_are_kept_until_the_run_has_begun(tmp_path):
    folder = tmp_path / "a" / "run"
    with run_folder(folder, WORDS):
        assert json.loads((folder / "run.json").read_text()) == WORDS
        assert (folder / journal.LOCK).exists()
    with run_folder(folder, {"options": {}}):
        journal.append(folder, {"event": "start"})
    with run_folder(folder, WORDS):
        pass
    assert json.loads((folder / "run.json").read_text()) == {"options": {}}
    assert sorted(path.name for path in folder.iterdir()) == [journal.JOURNAL, "run.json"]


@pytest.mark.parametrize("error", [UsageError("no"), KaruiError("no"), OSError(errno.ENOSPC, "full")])
def test_what_fails_before_the_first_event_leaves_nothing(tmp_path, error):
    with pytest.raises(KaruiError), run_folder(tmp_path / "run", WORDS):
        (tmp_path / "run" / "data").mkdir()
        raise error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [UsageError("no"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_what_fails_later_keeps_all(tmp_path, error):
    with pytest.raises((KaruiError, KeyboardInterrupt)), run_folder(tmp_path / "run", WORDS):
        journal.append(tmp_path / "run", {"event": "start"})
        raise error
    assert journal.read(tmp_path / "run") == [{"event": "start"}]
    assert not (tmp_path / "run" / journal.LOCK).exists()


def test_an_interruption_before_the_first_event_can_be_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt), run_folder(tmp_path / "run", WORDS):
        raise KeyboardInterrupt
    assert (tmp_path / "run" / "run.json").exists()
    with run_folder(tmp_path / "run", WORDS):
        pass


def test_other_peoples_folders_are_refused_and_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.npy").write_bytes(b"1")
    with pytest.raises(UsageError, match="is no run folder"), run_folder(tmp_path, WORDS):
        pass
    assert (tmp_path / "data" / "mine.npy").exists()
    with (
        pytest.raises(UsageError, match="cannot be written"),
        run_folder(tmp_path / "data" / "mine.npy", None),
    ):
        pass


def test_a_full_disk_is_recognised(tmp_path, monkeypatch):
    check_room(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(OSError, match="No space left"):
        check_room(tmp_path)
