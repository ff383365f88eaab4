"""An agent does what was agreed upon and nothing else, in a folder of its own, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import signal
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lines import HELLO, Raw, children, gone
from tests.bench.arrays import make_artifact, make_data

from karui.agent.forms import AGENT, WORKER, checked, is_name
from karui.agent.store import Store
from karui.artifact import load_artifact
from karui.errors import KaruiError, MeasureFailed, Tampered, UsageError

HASH = hashlib.sha256(b"hello").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
OPEN = {"do": "open", "worker": 1, "artifact": {"manifest.json": HASH}, "timing": {"00.x.npy": HASH}}
OPEN |= {"batch": 1, "threads": 1, "seconds": 20.0, "bytes": 0}


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    (folder / "victim").write_text("untouched")
    return folder


@pytest.fixture(scope="module")
def agent(ground):
    one = Raw(ground)
    assert one.ask({"do": "put", "sha256": HASH, "bytes": 5}, b"hello") == {}
    yield one
    assert one.end() == 0
    assert [path.name for path in ground.iterdir()] == ["victim"]


def contents(folder):
    """Every file below a folder with its text, but for logs."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


ESCAPES = [
    "../victim",
    "/etc/passwd",
    "a/../../victim",
    "..",
    ".",
    "",
    "a//b",
    "a\\b",
    "a\0b",
    "x" * 300,
    "a/",
]
HOSTILE = {
    **{f"a name like {name[:20]!r}": OPEN | {"artifact": {name: HASH}} for name in ESCAPES},
    **{f"rows like {name[:20]!r}": OPEN | {"timing": {name: HASH}} for name in ESCAPES},
    "a hash that leads out": {"do": "put", "sha256": "../../victim", "bytes": 0},
    "a hash of another form": {"do": "put", "sha256": HASH.upper(), "bytes": 0},
    "a negative size": {"do": "put", "sha256": HASH, "bytes": -1},
    "a size that is no number": {"do": "put", "sha256": HASH, "bytes": "5"},
    "a size beyond all bounds": {"do": "missing", "files": [[OTHER, 1 << 52]]},
    "a truth value for a number": OPEN | {"worker": True},
    "an unknown verb": {"do": "run", "command": "touch /tmp/owned"},
    "no verb": {"command": "sh"},
    "a verb that is no word": {"do": ["open"]},
    "a method's name": {"do": "__class__"},
    "another program": OPEN | {"program": "/bin/sh"},
    "another module": OPEN | {"module": "http.server"},
    "variables of the environment": OPEN | {"env": {"LD_PRELOAD": "evil.so"}},
    "a worker that is not there": {"do": "ask", "worker": 7, "message": {"do": "load"}},
    "files that were not sent": OPEN | {"artifact": {"manifest.json": OTHER}},
    "a file within a file": OPEN | {"artifact": {"a": HASH, "a/b": HASH}},
    "threads without end": OPEN | {"threads": 1 << 40},
    "for ever": OPEN | {"seconds": 1e300},
    "a log of the system": {"do": "memory", "worker": 1, "field": "../../stat"},
}


@pytest.mark.gate
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_message_is_refused_and_changes_nothing(agent, ground, kind):
    before, workers = contents(ground), children(agent.process.pid)
    reply = agent.ask(HOSTILE[kind])
    assert reply["error"]["kind"] in ("UsageError", "MeasureFailed", "Tampered")
    assert contents(ground) == before
    assert children(agent.process.pid) == workers == []
    assert "host" in agent.ask({"do": "facts"})  # and it goes on


@pytest.mark.gate
def test_a_file_with_another_hash_is_not_kept(agent, ground):
    before = contents(ground)
    reply = agent.ask({"do": "put", "sha256": OTHER, "bytes": 5}, b"evil!")
    assert "another hash" in reply["error"]["what"]
    assert contents(ground) == before
    assert agent.ask({"do": "missing", "files": [[OTHER, 5], [HASH, 5]]}) == {"missing": [OTHER]}


@pytest.mark.parametrize("line", [b"[]", b"not json", b'"load"', b"\xff\xfe"])
def test_what_is_no_message_ends_the_agent(tmp_path, line):
    one = Raw(tmp_path)
    one.say(line)
    assert one.process.wait(timeout=20) == 0
    assert list(tmp_path.iterdir()) == []
    one.end()


@pytest.mark.gate
def test_it_answers_nothing_before_it_was_greeted_in_its_version(tmp_path):
    one = Raw(tmp_path, greet=False)
    assert "not greeted" in one.ask({"do": "facts"})["error"]["what"]
    error = one.ask(HELLO | {"protocol": 999, "karui": "9.9"})["error"]
    assert error["kind"] == "UsageError"
    assert "called in 999 (karui 9.9)" in error["why"] and "same karui" in error["fix"]
    assert one.process.wait(timeout=20) == 0
    one.end()


@pytest.fixture
def measuring(tmp_path):
    """An agent with a worker that has loaded an artifact, and the number of that process."""
    artifact = make_artifact(tmp_path / "artifact")
    make_data(tmp_path / "data")
    home = tmp_path / "home"
    home.mkdir()
    one = Raw(home)
    names = {}
    for folder, wanted in (("artifact", "artifact"), ("data/timing", "timing")):
        names[wanted] = {}
        for path in (tmp_path / folder).iterdir():
            data = path.read_bytes()
            names[wanted][path.name] = hashlib.sha256(data).hexdigest()
            put = {"do": "put", "sha256": names[wanted][path.name], "bytes": len(data)}
            assert one.ask(put, data) == {}
    assert load_artifact(artifact.folder).files.keys() < names["artifact"].keys()
    assert one.ask(OPEN | names) == {}
    assert one.ask({"do": "ask", "worker": 1, "message": {"do": "load"}})["answer"]["load_s"] > 0
    yield one, children(one.process.pid)[0], home
    one.process.kill()
    one.end()


def wait_for(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    assert condition()


@pytest.mark.gate
def test_the_worker_is_told_only_what_workers_are_told(measuring):
    one, pid, home = measuring
    before = contents(home)
    for message in (
        {"do": "outputs", "rows": "/etc", "batch": 1, "index": [0]},
        {"do": "outputs", "rows": {}, "batch": 1, "index": [0], "out": str(home / "out")},
        {"do": "outputs", "rows": {"00.x.npy": OTHER}, "batch": 1, "index": [0]},
        {"do": "exec", "code": "1"},
        {"do": "time", "calls": 0},
    ):
        assert "error" in one.ask({"do": "ask", "worker": 1, "message": message}), message
    assert contents(home) == before
    assert one.ask({"do": "ask", "worker": 1, "message": {"do": "time", "calls": 3}})["answer"]["mean_s"] > 0


@pytest.mark.gate
def test_nothing_listens(measuring):
    """Neither the agent nor its worker has a socket of any kind open."""
    one, pid, _ = measuring
    for number in (one.process.pid, pid):
        handles = [os.readlink(f"/proc/{number}/fd/{fd}") for fd in os.listdir(f"/proc/{number}/fd")]
        assert [handle for handle in handles if handle.startswith("socket:")] == []


@pytest.mark.gate
@pytest.mark.parametrize("how", ["the pipe closes", "the pipe closes while a worker works", "it is ended"])
def test_it_takes_its_workers_and_its_folder_with_it(measuring, how):
    one, pid, home = measuring
    if "works" in how:
        one.say({"do": "ask", "worker": 1, "message": {"do": "time", "calls": 1 << 29}})
    if how == "it is ended":
        one.process.send_signal(signal.SIGTERM)
    else:
        one.process.stdin.close()
    assert one.process.wait(timeout=20) in (0, 128 + signal.SIGTERM)
    wait_for(lambda: gone(pid))
    assert list(home.iterdir()) == []


@pytest.mark.gate
def test_one_that_is_killed_takes_its_workers_along_and_the_next_one_sweeps(measuring):
    one, pid, home = measuring
    one.process.kill()
    one.process.wait()
    wait_for(lambda: gone(pid))
    (left,) = home.iterdir()
    os.utime(left, (0, 0))
    other = Raw(home)
    assert left not in list(home.iterdir())
    assert len(list(home.iterdir())) == 1
    another = Raw(home)  # a living one is left alone
    assert len(list(home.iterdir())) == 2
    assert other.ask({"do": "missing", "files": [[HASH, 5]]}) == {"missing": [HASH]}
    assert (other.end(), another.end()) == (0, 0)


def test_a_worker_that_gives_no_answer_is_given_up_by_the_agent(measuring):
    one, _, _ = measuring
    pid = children(one.process.pid)[0]
    os.kill(pid, signal.SIGSTOP)
    assert one.ask({"do": "close", "worker": 1}) == {}
    assert gone(pid)


# names and files, in this process


@given(
    st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "", "/", "\\", "~", "C:"])).map("/".join)
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@pytest.mark.gate
def test_no_name_leads_out_of_the_folder(tmp_path_factory, name):
    ground = tmp_path_factory.mktemp("names")
    store = Store(ground / "store", 1 << 20)
    store.put(HASH, 5, [b"hello"])
    try:
        folder = store.folder(checked({"do": "check", "files": {name: HASH}}, AGENT)["files"])
    except KaruiError:
        assert list((ground / "store" / "folders").iterdir()) == []
    else:
        assert is_name(name)
        made = [path for path in folder.rglob("*") if path.is_file()]
        assert [path.read_bytes() for path in made] == [b"hello"]
    assert [path.name for path in ground.iterdir()] == ["store"]


@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8)))
@settings(deadline=None)
def test_messages_that_were_not_agreed_upon_are_refused(message):
    for forms in (AGENT, WORKER):
        for verb in forms:
            fields = set(message) - {"do"}
            if fields != set(forms[verb]):
                with pytest.raises(UsageError):
                    checked({**message, "do": verb}, forms)


def test_the_store_has_an_end(tmp_path):
    store = Store(tmp_path / "store", 8)
    store.put(HASH, 5, [b"hello"])
    with pytest.raises(MeasureFailed, match="takes no more files"):
        store.put(OTHER, 5, [b"other"])
    assert store.missing({HASH: 5}) == []
    assert [path.name for path in (tmp_path / "store" / "files").iterdir()] == [HASH]


def test_folders_of_the_same_files_are_one_and_changes_are_found(tmp_path):
    store = Store(tmp_path / "store", 1 << 20)
    store.put(HASH, 5, [b"hello"])
    folder = store.folder({"a": HASH, "b/c": HASH})
    assert store.folder({"b/c": HASH, "a": HASH}) == folder
    store.check({"a": HASH, "b/c": HASH})
    (folder / "more").write_bytes(b"")
    with pytest.raises(Tampered, match="by running"):
        store.check({"a": HASH, "b/c": HASH})
    store.folder({"a": HASH, "b/c": HASH})
    with (folder / "a").open("r+b") as file:
        file.write(b"J")
    with pytest.raises(Tampered, match="by running"):
        store.check({"a": HASH, "b/c": HASH})
    assert store.missing({HASH: 5}) == [HASH]  # to be sent again
