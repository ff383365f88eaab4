"""``--on ssh://`` for real: OpenSSH's own server and client, on a random port of the loopback.

The server is ``openssh-server`` of Debian; it and all its files live in a folder of the test.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lines import SOURCES, children, gone
from tests.story import jobs

import karui
from karui.bench.machine import HERE
from karui.bench.remote import Remote
from karui.errors import Unreachable

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(not SSHD, reason="there is no sshd: apt-get install openssh-server")

SERVER = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowTcpForwarding no
SetEnv PYTHONPATH={sources} TMPDIR={folder}/board
"""
CLIENT = """
IdentityFile {folder}/{key}
IdentitiesOnly yes
UserKnownHostsFile {folder}/{known}
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
"""


@dataclass(frozen=True)
class Board:
    """A machine that is reached by ssh: its address, the folder of all its files, the server."""

    address: str
    folder: Path
    server: subprocess.Popen

    def config(self, key: str = "key", known: str = "known") -> str:
        path = self.folder / f"config-{key}-{known}"
        path.write_text(CLIENT.format(folder=self.folder, key=key, known=known))
        return str(path)


@pytest.fixture(scope="module")
def board(tmp_path_factory, second):
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "board").mkdir()
    for name in ("host", "key", "narrow", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    public = {name: (folder / f"{name}.pub").read_text() for name in ("host", "key", "narrow")}
    narrow = f'restrict,command="{second} agent --most 1MB" {public["narrow"]}'
    (folder / "authorized").write_text(public["key"] + narrow)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {public['host']}")
    (folder / "empty").write_text("")
    (folder / "server").write_text(SERVER.format(port=port, folder=folder, sources=SOURCES))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where the server locks itself in; root's cannot be named
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "server")], stderr=log)
    wait_for_port(port, server, folder / "server.log")
    yield Board(f"ssh://127.0.0.1:{port}{second}", folder, server)
    server.terminate()
    server.wait(timeout=10)


def wait_for_port(port, server, log):
    for _ in range(100):
        assert server.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(log.read_text())


@pytest.fixture
def ssh(board, monkeypatch):
    """Which files ssh reads; those of the user are not touched."""

    def choose(**names: str) -> None:
        monkeypatch.setenv("KARUI_SSH_CONFIG", board.config(**names))

    choose()
    return choose


@pytest.mark.gate
def test_the_main_job_measures_on_a_machine_behind_ssh(board, ssh, tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)).eval()
    (tmp_path / "net.onnx").write_bytes(jobs.onnx_of(net))
    inputs, _ = jobs.labelled(net, 16, rows=600)
    task = karui.Task(model=tmp_path / "net.onnx", select=jobs.clear(net, inputs), name="board")
    settings = jobs.quick("fp32@onnxruntime", "int8_dynamic@onnxruntime")
    result = karui.optimize(task, max_drop=5, out=tmp_path / "run", on=board.address, settings=settings)
    assert [trial["id"] for trial in result.facts["trials"]] == [
        *("onnxruntime-fp32", "onnxruntime-int8_dynamic")
    ]
    for trial in result.facts["trials"]:
        assert trial["verification"]["status"] == "verified on runtime"
        assert trial["latency_s"]["n"] > 0 and trial["speedup"]["ratio"] > 0
    assert result.facts["target"]["on"] == board.address
    assert result.facts["host"]["cpu"] == HERE.facts()["cpu"]
    assert list((board.folder / "board").iterdir()) == []


@pytest.mark.gate
def test_a_key_that_may_do_nothing_but_start_an_agent(board, ssh):
    """As the page on security advises: whatever command is asked for, the agent is what runs."""
    ssh(key="narrow")
    with Remote(board.address.replace("/karui", "/other")) as machine:
        assert machine.lacks("onnxruntime") == ""
        assert machine.lacks("torch_eager")


@pytest.mark.gate
def test_an_unknown_host_and_an_unknown_key_are_one_clear_error(board, ssh):
    ssh(known="empty")
    with pytest.raises(Unreachable, match="no agent answers") as caught:
        Remote(board.address)
    assert "Host key verification failed" in caught.value.why
    ssh(key="stranger")
    with pytest.raises(Unreachable, match="no agent answers") as caught:
        Remote(board.address)
    assert "Permission denied" in caught.value.why


@pytest.mark.gate
def test_no_karui_there_is_one_clear_error(board, ssh):
    with pytest.raises(Unreachable) as caught:
        Remote(board.address.replace("/karui", "/nothing"))
    assert "nothing: not found" in caught.value.why or "No such file" in caught.value.why


@pytest.mark.gate
def test_a_dropped_connection_ends_the_agent_and_is_made_anew(board, ssh):
    with Remote(board.address) as machine:
        (session,) = children(board.server.pid)
        started = descendants(session)
        os.kill(session, signal.SIGKILL)
        with pytest.raises(Unreachable, match="the connection has ended"):
            machine.connection.ask({"do": "facts"})
        until = time.monotonic() + 10
        while not all(map(gone, started)) and time.monotonic() < until:
            time.sleep(0.05)
        assert started and all(map(gone, started))
        assert machine.lacks("onnxruntime") == ""
    assert list((board.folder / "board").iterdir()) == []


def descendants(pid: int) -> list[int]:
    found = children(pid)
    return [*found, *(one for child in found for one in descendants(child))]
