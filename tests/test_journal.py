"""The journal survives being cut anywhere; the lock knows the living from the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karui import journal
from karui.errors import UsageError


@given(cut=st.integers(0, 400))
def test_a_cut_journal_keeps_its_whole_lines(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("run")
    events = [{"event": "trial", "n": i, "text": "軽い" * i} for i in range(6)]
    for event in events:
        journal.append(folder, event)
    path = folder / journal.JOURNAL
    os.truncate(path, min(cut, path.stat().st_size))
    kept = journal.read(folder)
    assert kept == events[: len(kept)]
    journal.mend(folder)
    journal.append(folder, {"event": "end"})
    assert journal.read(folder) == [*kept, {"event": "end"}]


def test_a_dead_owner_is_no_owner(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    started = journal.start_time(dead.pid)
    dead.wait()
    (tmp_path / journal.LOCK).write_text(json.dumps({"pid": dead.pid, "started": started or "1"}))
    with journal.locked(tmp_path):
        assert journal.owner_of(tmp_path / journal.LOCK)["pid"] == os.getpid()
    assert not (tmp_path / journal.LOCK).exists()


def test_a_reused_process_number_is_no_owner(tmp_path):
    (tmp_path / journal.LOCK).write_text(json.dumps({"pid": os.getpid(), "started": "1"}))
    with journal.locked(tmp_path):
        pass


def test_a_living_owner_is_named(tmp_path):
    with (
        journal.locked(tmp_path),
        pytest.raises(UsageError, match="in use") as caught,
        journal.locked(tmp_path),
    ):
        pass
    assert str(os.getpid()) in caught.value.why
    assert not (tmp_path / journal.LOCK).exists()
