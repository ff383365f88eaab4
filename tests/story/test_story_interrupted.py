"""Killed, interrupted, out of disk: what is finished is kept, and ``resume`` ends where it would have."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import final

import jobs
import pytest

import karui
from karui import journal
from karui.artifact import load_artifact
from karui.errors import UsageError
from karui.optimize.watch import Watcher

pytestmark = pytest.mark.gate

# an ONNX model makes for a short run
WORDS = ["net.onnx", "--select", "data.py:both", "--max-drop", "10", "--pace", "quick"]
INT8 = "int8@onnxruntime:quantizer=onnxruntime"
WORDS += ["--recipe", INT8, "--recipe", "int8_dynamic@onnxruntime"]
ALL = ["onnxruntime-fp32", "onnxruntime-int8-onnxruntime-95fe11a9", "onnxruntime-int8_dynamic"]


def trials(folder):
    return [event["trial"]["id"] for event in journal.read(folder) if event.get("event") == "trial"]


def when(process, happened):
    """Wait until ``happened()``, or the process ends by itself."""
    until = time.monotonic() + 120
    while not happened() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert happened(), process.communicate()


def children_of(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


def gone(pids):
    until = time.monotonic() + 10
    while any(journal.start_time(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(journal.start_time(pid) for pid in pids)


def kept(facts):
    """Ids of those inside the budget; which of two equally fast ones is the best is for chance to say."""
    return {row["id"] for row in facts["trials"] if row["quality"]["verdict"] in ("within", "baseline")}


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_three_times_interrupted_once_and_resumed(shell, cli, tmp_path):
    jobs.write_files(tmp_path)
    folder = tmp_path / "run"

    # while the first artifact is being built: a draft is left
    process = shell("optimize", *WORDS, "--out", "run", cwd=tmp_path)
    when(process, lambda: list(folder.glob("trials/*/draft")))
    children = children_of(process.pid)
    kill(process)
    assert gone(children)
    assert trials(folder) == []
    (next(folder.glob("trials/*/draft")) / "model.onnx").write_bytes(b"torn")

    # in the second trial: at most that one is repeated
    process = shell("resume", "run", cwd=tmp_path)
    when(process, lambda: trials(folder) and list(folder.glob(f"trials/{ALL[1]}/*")))
    kill(process)
    assert trials(folder) == ALL[:1]

    # before anything is done
    process = shell("resume", "run", cwd=tmp_path)
    when(process, lambda: (journal.owner_of(folder / journal.LOCK) or {}).get("pid") == process.pid)
    kill(process)
    assert trials(folder) == ALL[:1]

    # Ctrl-C in the last trial: the end may be short, where nothing is faster than the original
    process = shell("resume", "run", cwd=tmp_path)
    when(process, lambda: len(trials(folder)) == 2 and list(folder.glob(f"trials/{ALL[2]}/*")))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; what is finished is kept" in said
    assert "try: karui resume" in said
    assert not (folder / journal.LOCK).exists()

    said = cli("resume", "run", "--json")
    facts = json.loads(said.out)
    assert trials(folder) == ALL  # none made twice
    said = cli("optimize", *WORDS, "--out", "unbroken", "--json")
    unbroken = json.loads(said.out)
    assert kept(facts) == kept(unbroken) >= {"onnxruntime-fp32", ALL[1]}
    assert not (folder / journal.LOCK).exists()
    assert not list(folder.glob("trials/*/draft"))
    for path in folder.glob("trials/*/artifact"):
        load_artifact(path)

    # a finished run is shown, not made again
    before = jobs.contents(folder)
    assert INT8 in cli("resume", "run").out
    assert jobs.contents(folder) == before


def test_a_torn_journal_and_a_torn_draft_are_no_obstacle(cli, copied_run):
    """What a kill in the middle of a write leaves behind: half a line, half a folder, a dead owner's lock."""
    with (copied_run / journal.JOURNAL).open("ab") as file:
        file.write(b'{"event": "trial", "trial": {"id": "onnxr')
    (copied_run / journal.LOCK).write_text(json.dumps({"pid": 2**22 - 3, "started": "1"}))
    draft = copied_run / "trials" / "onnxruntime-fp32" / "draft"
    shutil.copytree(draft.with_name("artifact"), draft)
    (draft / "model.onnx").write_bytes(b"half")
    assert cli("show", draft).code == 2
    assert cli("show", copied_run).code == 0
    with journal.locked(copied_run):
        assert journal.owner_of(copied_run / journal.LOCK)["pid"] == os.getpid()


# a full disk

FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails with EFBIG; a full disk: ENOSPC
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from karui.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("size", [10, 3000])
def test_a_write_that_fails_is_told_in_words(tmp_path, size):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    words = ["optimize", "job.py:task", "--out", "run", "--recipe", "fp32@onnxruntime"]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(size), *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for little."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("this user may not mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


@final
class Filler(Watcher):
    """Fills the disk when the second trial begins."""

    def __init__(self, disk):
        self.disk = disk

    def stage(self, text):
        return

    def training(self, progress):
        return

    def done(self, trial):
        return

    def trial(self, recipe, done, total):
        if done == 1:
            free = shutil.disk_usage(self.disk).free
            (self.disk / "ballast").write_bytes(b"x" * (free - 8192))


def test_a_disk_that_runs_full_can_be_resumed(small_disk, tmp_path):
    _, inputs = jobs.write_files(tmp_path)
    model, folder = tmp_path / "net.onnx", small_disk / "run"
    labels = jobs.write_files(tmp_path)[0](inputs).argmax(1)
    task = karui.Task(model=model, select=(inputs, labels))
    settings = jobs.quick(INT8)
    with pytest.raises(UsageError, match="cannot be written") as caught:
        karui.optimize(task, out=folder, settings=dataclasses.replace(settings, watcher=Filler(small_disk)))
    assert "No space left on device" in caught.value.why
    assert "free some space" in caught.value.fix
    assert "karui resume" in caught.value.fix
    assert trials(folder) == ALL[:1]
    (small_disk / "ballast").unlink()
    karui.optimize(task, out=folder, settings=settings)
    assert trials(folder) == ALL[:2]
