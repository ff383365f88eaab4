"""Killed, interrupted, out of disk: what is finished is kept, and ``resume`` ends where it would have."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jobs
import pytest

from karui import journal
from karui.artifact import load_artifact

pytestmark = pytest.mark.gate

WORDS = ["--pace", "quick", "--recipe", "fp32@onnxruntime"]
BOTH = ["torch_eager-fp32", "onnxruntime-fp32"]


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


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_three_times_interrupted_once_and_resumed(shell, cli, tmp_path, run_folder):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    folder = tmp_path / "run"

    # while the first artifact is being built: a draft is left
    process = shell("optimize", "job.py:task", "--out", "run", *WORDS, cwd=tmp_path)
    when(process, lambda: list(folder.glob("trials/*/draft")))
    children = children_of(process.pid)
    kill(process)
    assert gone(children)
    assert trials(folder) == []
    (next(folder.glob("trials/*/draft")) / "model.pt2").write_bytes(b"torn")

    # in the second trial: at most that one is repeated
    process = shell("resume", "run", cwd=tmp_path)
    when(process, lambda: trials(folder) and list(folder.glob("trials/onnxruntime-fp32/*")))
    kill(process)
    assert trials(folder) == BOTH[:1]

    # before anything is done
    process = shell("resume", "run", cwd=tmp_path)
    when(process, lambda: (journal.owner_of(folder / journal.LOCK) or {}).get("pid") == process.pid)
    kill(process)
    assert trials(folder) == BOTH[:1]

    # Ctrl-C among the finalists
    process = shell("resume", "run", cwd=tmp_path)
    when(process, lambda: len(trials(folder)) == 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; what is finished is kept" in said
    assert "try: karui resume" in said
    assert not (folder / journal.LOCK).exists()

    said = cli("resume", "run", "--json")
    facts = json.loads(said.out)
    assert said.code == 0
    assert trials(folder) == BOTH  # none made twice
    unbroken = json.loads((run_folder / "result.json").read_text())
    for key in ("best", "baseline", "pareto"):
        assert facts[key] == unbroken[key]
    assert [(t["id"], t["status"]) for t in facts["trials"]] == [
        (t["id"], t["status"]) for t in unbroken["trials"]
    ]
    assert not (folder / journal.LOCK).exists()
    assert not list(folder.glob("trials/*/draft"))
    for path in folder.glob("trials/*/artifact"):
        load_artifact(path)

    # a finished run is shown, not made again
    before = jobs.contents(folder)
    assert "fp32@onnxruntime" in cli("resume", "run").out
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
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails with EFBIG, as a full disk does with ENOSPC
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from karui.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("size", [10, 3000])
def test_a_write_that_fails_is_told_in_words(tmp_path, size):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    words = ["optimize", "job.py:task", "--out", "run", *WORDS]
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


def fill(disk, left):
    """Leave about ``left`` bytes free."""
    with (disk / "ballast").open("ab") as file:
        free = shutil.disk_usage(disk).free
        file.write(b"x" * max(free - left, 0))


def test_a_disk_that_runs_full_can_be_resumed(shell, cli, small_disk, tmp_path):
    (tmp_path / "job.py").write_text(jobs.TASK_FILE)
    folder = small_disk / "run"
    process = shell("optimize", "job.py:task", "--out", folder, *WORDS, cwd=tmp_path)
    when(process, lambda: len(trials(folder)) == 1)
    fill(small_disk, 4096)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "No space left on device" in said
    assert "free some space" in said
    assert "karui resume" in said
    assert "Traceback" not in said
    assert trials(folder) == BOTH[:1]
    (small_disk / "ballast").unlink()
    assert cli("resume", folder).code == 0
    assert trials(folder) == BOTH


