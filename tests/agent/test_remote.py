"""Measuring over a pipe: answers and ratios as here; what breaks is a failure with its reason."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from lines import AGENT, children, elsewhere, gone
from tests.bench.arrays import WEIGHT, make_artifact, make_data

from karui.artifact import load_artifact
from karui.bench import connection
from karui.bench.candidate import Candidate, Opened
from karui.bench.compare import compare
from karui.bench.connection import Connection
from karui.bench.machine import HERE, Conditions
from karui.bench.remote import Remote
from karui.bench.rounds import Pace, interleave, session
from karui.errors import KaruiError, MeasureFailed, Unreachable, UsageError
from karui.process import Limits

LIMITS = Limits(seconds=60.0)
PIPE = f"pipe:{shlex.join(AGENT)}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two artifacts, of which one takes several times as long; and data."""
    folder = tmp_path_factory.mktemp("remote")
    make_artifact(folder / "small")
    large = np.random.default_rng(0).standard_normal((6, 40_000)).astype(np.float32)
    make_artifact(folder / "large", large)
    make_data(folder / "data", batch=4)
    return folder


@pytest.fixture(scope="module")
def machine(second, tmp_path_factory):
    """A second local environment with another home."""
    folder = tmp_path_factory.mktemp("home")
    with Remote(elsewhere(second, folder)) as one:
        yield one
    assert list(folder.iterdir()) == []


def candidate(home, tmp_path, machine, name="small", limits=LIMITS):
    artifact = load_artifact(home / name)
    where = tmp_path / f"{name}-{machine.address or 'here'}".replace("/", "")[:40]
    return Candidate(artifact, home / "data", where, Conditions(4, 1, limits, machine))


@pytest.mark.gate
def test_the_other_machine_needs_only_numpy_and_the_runtime(machine):
    assert machine.lacks("onnxruntime") == ""
    assert "needs" not in machine.lacks("torch_eager")
    assert f"not on {machine.address}: not installed" in machine.lacks("torch_eager")
    assert "no runtime 'abacus'" in machine.lacks("abacus")
    assert machine.facts()["cpu"] == HERE.facts()["cpu"]
    assert machine.flags() == HERE.flags()


@pytest.mark.gate
def test_answers_are_those_of_a_worker_here(home, tmp_path, machine):
    one = candidate(home, tmp_path, machine)
    one.load()
    rows = home / "data" / "select"
    (answers,) = one.outputs(rows, 4, [3, 1, 4, 1, 5])
    x = np.load(rows / "00.x.npy")
    assert np.allclose(answers, x[[3, 1, 4, 1, 5]] @ WEIGHT, atol=1e-5)
    one.check_files()
    one.warm()
    assert one.time(0.005)["samples_s"]
    assert one.peak_memory_bytes > 1_000_000
    assert one.child.alive
    one.close()
    assert not one.child.alive
    assert [path.name for path in one.home.iterdir()] == ["worker.log"]


@pytest.mark.gate
def test_ratios_there_agree_with_ratios_here(home, tmp_path, machine):
    """All four are timed in the same rounds, so that what disturbs one disturbs the others."""
    places = {"here": HERE, "there": machine}

    def fresh():
        return {
            f"{name} {where}": candidate(home, tmp_path, place, name)
            for where, place in places.items()
            for name in ("large", "small")
        }

    pairs = [(f"large {where}", f"small {where}") for where in places]
    with Opened() as opened:
        rounds = session(lambda: opened.again(fresh()), pairs, Pace(18, 30, 2.0, 0.02, openings=3), seed=0)
    assert rounds.failed == {}
    here, there = (rounds.ratio(*pair, seed=0) for pair in pairs)
    assert here.verdict == there.verdict == "faster"
    assert here.low <= there.high and there.low <= here.high
    same = rounds.ratio("small here", "small there", seed=0)
    assert same.low / 1.05 <= 1 <= same.high * 1.05


def test_data_travel_once(home, tmp_path, machine, monkeypatch):
    sent = []
    real = Connection.ask

    def counted(self, message, *, timeout_s=60.0, files=()):
        sent.extend(path.name for path in files)
        return real(self, message, timeout_s=timeout_s, files=files)

    monkeypatch.setattr(Connection, "ask", counted)
    with Remote(PIPE) as fresh:
        for _ in range(3):
            one = candidate(home, tmp_path, fresh)
            one.load()
            one.outputs(home / "data" / "select", 4, [0])
            one.outputs(home / "data" / "select", 4, [1])
            one.close()
    assert sorted(sent) == ["00.x.npy", "00.x.npy", "manifest.json", "model.onnx"]  # timing and rows


@pytest.mark.gate
def test_finished_artifacts_are_compared_there(home, machine):
    rows = compare(
        [home / "large", home / "small"], Conditions(4, 1, LIMITS, machine), Pace(6, 8, 0.5), seed=0
    )
    assert [row["speedup"]["verdict"] for row in rows] == ["baseline", "faster"]


# what breaks


@pytest.mark.gate
def test_a_killed_agent_fails_what_was_open_and_the_next_one_goes_on(home, tmp_path):
    with Remote(PIPE) as machine:
        both = {name: candidate(home, tmp_path, machine, name) for name in ("large", "small")}
        for one in both.values():
            one.load()
        agent = machine.connection.process
        workers = children(agent.pid)
        assert len(workers) == 2
        agent.kill()
        rounds = interleave(both, [("large", "small")], Pace(6, 8, 0.5), seed=0)
        assert rounds.failed.keys() == both.keys()
        assert all(isinstance(error, Unreachable) for error in rounds.failed.values())
        assert "hung up" in str(rounds.failed["large"])
        assert not any(one.child.alive for one in both.values())
        for one in both.values():
            one.close()  # does no harm
        again = candidate(home, tmp_path, machine)
        again.load()
        assert again.load_s > 0
        again.close()
        assert all(map(gone, workers))


@pytest.mark.gate
def test_a_session_makes_an_opening_again_when_the_pipe_dropped(home, tmp_path):
    with Remote(PIPE) as machine, Opened() as opened:
        number = iter(range(10))

        def fresh():
            made = {name: candidate(home, tmp_path, machine, name) for name in ("large", "small")}
            found = opened.again(made)
            if next(number) == 1:
                machine.connection.process.kill()
            return found

        rounds = session(fresh, [("large", "small")], Pace(6, 8, 0.5, openings=4), seed=0)
        assert rounds.failed == {}
        assert len(rounds.blocks_s["large"]) == 4
        assert next(number) == 5
        assert rounds.ratio("large", "small", 0).verdict == "faster"


@pytest.mark.gate
def test_another_version_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(connection, "PROTOCOL", 999)
    with pytest.raises(UsageError, match="another version of the protocol") as caught:
        Remote(PIPE)
    assert "called in 999" in caught.value.why and "the same karui" in caught.value.fix


SILENT = "import time; time.sleep(60)"
CASES = {
    "nothing there": ("no-such-command agent", "cannot be started"),
    "it ends": ("true", "ended without a word"),
    "it complains": ("sh -c 'echo not here >&2'", "not here"),
    "it says other things": ("echo welcome to the machine", "welcome to the machine"),
    "it is silent": (f"{sys.executable} -c '{SILENT}'", "gave no answer in 1 s"),
    "an answer of another kind": ("""echo '{"pong": 1}'""", "no agent of karui"),
    "an endless stream": ("yes", "says other things"),
}


@pytest.mark.gate
@pytest.mark.parametrize("kind", CASES)
def test_who_is_no_agent_is_one_clear_error_in_time(kind, monkeypatch):
    monkeypatch.setattr(connection, "GREETING_S", 1.0)
    command, words = CASES[kind]
    with pytest.raises(Unreachable) as caught:
        Remote(f"pipe:{command}")
    assert words in str(caught.value)


def test_what_a_login_prints_is_passed_over():
    noisy = f"sh -c 'echo Welcome; echo; exec {shlex.join(AGENT)}'"
    with Remote(f"pipe:{noisy}") as machine:
        assert machine.cpus() == HERE.cpus()


@pytest.mark.gate
def test_a_worker_that_hangs_there_is_given_up_and_the_others_live_on(home, tmp_path, machine):
    good, bad = candidate(home, tmp_path, machine), None
    good.load()
    bad = candidate(home, tmp_path, machine, "large", Limits(seconds=1.0))
    with pytest.raises(MeasureFailed, match="gave no answer in 1 s and was stopped"):
        bad.load()  # loading Python and numpy takes longer on its own, or the next question does
        bad.child.ask({"do": "time", "calls": 1 << 28})
    assert not bad.child.alive
    bad.close()
    good.warm()
    assert good.time(0.005)["mean_s"] > 0
    good.close()


def test_a_file_that_running_changed_is_found(home, tmp_path, machine):
    one = candidate(home, tmp_path, machine)
    one.load()
    name = load_artifact(home / "small").files["model.onnx"]
    (store,) = home_of(machine).glob(f"karui-agent-*/store/files/{name}")
    store.write_bytes(store.read_bytes()[:-1] + b"?")  # one file with its name in the worker's folder
    with pytest.raises(KaruiError, match="changed by running"):
        one.check_files()
    one.close()
    again = candidate(home, tmp_path, machine)
    again.load()  # it was sent again
    again.close()


def home_of(machine):
    words = shlex.split(machine.address)
    return Path(words[words.index("-C") + 1])


def test_other_versions_there_are_said(machine):
    assert machine.notes() == []  # the packages are the same ones
    known = dict(machine.first["host"]["versions"])
    machine.first["host"]["versions"] = known | {"onnxruntime": "1.2.3", "torch": "0"}
    (note,) = machine.notes()
    machine.first["host"]["versions"] = known
    assert f"onnxruntime 1.2.3 ({known['onnxruntime']} here)" in note and "torch 0" in note


def test_a_store_that_is_full_is_a_failure_of_the_one_that_found_no_room(home, tmp_path):
    with Remote(f"{PIPE} --most 20kB") as machine:
        with pytest.raises(MeasureFailed, match="takes no more files"):
            candidate(home, tmp_path, machine, "large")
        one = candidate(home, tmp_path, machine)
        one.load()
        one.close()
