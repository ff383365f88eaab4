"""Child processes that crash, hang, chatter or eat memory become one clear error and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from karui.errors import BuildFailed, MeasureFailed, Unsupported
from karui.journal import start_time
from karui.process import Child, Limits, environment, family

CHILD = """
import ctypes, os, subprocess, sys, time
from karui.errors import BuildFailed, Unsupported
from karui.process import serve

def answer(message):
    what = message["do"]
    if what == "crash":
        print("about to crash", file=sys.stderr, flush=True)
        ctypes.string_at(0)
    if what == "exit":
        os._exit(7)
    if what == "hang":
        time.sleep(600)
    if what == "eat":
        hoard = [b"x" * (20 << 20) for _ in range(100)]
        time.sleep(600)
    if what == "raise":
        raise ValueError("no")
    if what == "refuse":
        raise Unsupported("not this model", why="it is too odd", fix="another one")
    if what == "build":
        raise BuildFailed("it would not build")
    if what == "chatter":
        print("to standard output")
        os.write(1, b"past Python\\n")
        subprocess.run(["echo", "from a grandchild"])
    if what == "grandchild":
        return {"pid": subprocess.Popen(["sleep", "600"]).pid}
    return {"said": what}

serve(answer)
"""


PATIENT = Limits(seconds=20.0)


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "odd_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = []

    def start(limits: Limits = PATIENT) -> Child:
        started.append(Child("odd_child", [], tmp_path / "child.log", 1, limits))
        return started[-1]

    yield start
    for one in started:
        one.close()


def error_of(child: Child, do: str, kind: type = MeasureFailed) -> str:
    with pytest.raises(kind) as caught:
        child.ask({"do": do})
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.gate
def test_a_crash_tells_the_signal_and_the_last_words(child):
    one = child()
    assert one.ask({"do": "hello"}) == {"said": "hello"}
    said = error_of(one, "crash")
    assert "the odd_child process ended with SIGSEGV" in said
    assert "about to crash" in said
    assert one.process.poll() is not None
    assert "ended with SIGSEGV" in error_of(one, "hello")  # asking a dead one is the same error


def test_last_words_are_of_this_child_and_this_question(child):
    error_of(child(), "crash")
    two = child()
    assert "it said nothing" in error_of(two, "exit")


def test_an_exit_tells_its_code(child):
    assert "ended with exit code 7" in error_of(child(), "exit")


@pytest.mark.gate
def test_a_hang_is_ended(child):
    one = child()
    one.ask({"do": "hello"})
    start = time.monotonic()
    with pytest.raises(MeasureFailed, match=r"gave no answer in 1 s and was stopped"):
        one.ask({"do": "hang"}, timeout_s=1.0)
    assert time.monotonic() - start < 10
    assert one.process.poll() is not None


@pytest.mark.gate
def test_eating_memory_is_ended(child):
    one = child(Limits(seconds=60.0, bytes=200_000_000))
    assert "used more than 0.2 GB of memory and was stopped" in error_of(one, "eat")
    assert one.process.poll() is not None


def test_errors_cross_the_pipe_as_what_they_are(child):
    one = child()
    assert "ValueError: no" in error_of(one, "raise")
    assert "it would not build" in error_of(one, "build", BuildFailed)
    said = error_of(one, "refuse", Unsupported)
    assert said == "not this model\n  why: it is too odd\n  try: another one"
    assert one.ask({"do": "hello"}) == {"said": "hello"}  # and the child lives on


def test_chatter_goes_to_the_log(child, tmp_path):
    assert child().ask({"do": "chatter"}) == {"said": "chatter"}
    log = (tmp_path / "child.log").read_text()
    assert "to standard output" in log
    assert "past Python" in log
    assert "from a grandchild" in log


def test_a_module_that_is_not_there(tmp_path):
    one = Child("no_such_module", [], tmp_path / "log", 1, Limits(seconds=20.0))
    assert "No module named no_such_module" in error_of(one, "hello")


def test_closing_ends_grandchildren_too(child):
    one = child()
    pid = one.ask({"do": "grandchild"})["pid"]
    assert start_time(pid)
    one.close()
    until = time.monotonic() + 5
    while start_time(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not start_time(pid)
    one.close()  # a second time does no harm


@pytest.mark.gate
def test_a_child_dies_with_its_parent(tmp_path, child):
    child()  # writes the module
    code = (
        "import os, time\nfrom pathlib import Path\nfrom karui.process import Child, Limits\n"
        f"one = Child('odd_child', [], Path({str(tmp_path / 'orphan.log')!r}), 1, Limits())\n"
        "one.ask({'do': 'hello'})\nprint(one.process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(done.stdout)
    until = time.monotonic() + 5
    while start_time(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not start_time(pid)


def test_memory_is_read_from_the_system(child):
    one = child()
    one.ask({"do": "hello"})
    assert 1_000_000 < one.memory_bytes() <= one.memory_bytes("VmHWM")


def test_threads_are_set_alike_for_every_library():
    found = environment(3)
    assert {found[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}
    assert found["PATH"] == os.environ["PATH"]


def test_a_process_that_ends_while_its_family_is_looked_for_is_alone(monkeypatch):
    """Between the question whether /proc has it and the answer it may be gone."""

    def gone(self, pattern):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "glob", gone)
    assert family(12345) == [12345]


def test_a_family_is_told_with_all_that_were_started():
    with subprocess.Popen(["sh", "-c", "sleep 30 & wait"]) as parent:
        try:
            until = time.monotonic() + 10
            while len(found := family(parent.pid)) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            assert found[0] == parent.pid and len(found) == 2
        finally:
            for pid in reversed(family(parent.pid)):
                os.kill(pid, signal.SIGKILL)
