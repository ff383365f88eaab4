"""No network: every attempt of the run and of its child processes would be recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jobs
import pytest
import torch

import karui

pytestmark = pytest.mark.gate

GUARD = """
import os, sys

EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind")


def deny(event, args):
    local = event in ("socket.connect", "socket.bind") and isinstance(args[1], (str, bytes))  # a Unix socket
    if event in EVENTS and not local:
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(f"{os.getpid()} {event} {args[1:]} {sys.argv}\\n")
        raise ConnectionRefusedError(f"the network is denied: {event}")


sys.addaudithook(deny)
with open(os.environ["STARTED_LOG"], "a") as log:
    log.write(f"{' '.join(sys.orig_argv)}\\n")
"""


@pytest.fixture
def denied(tmp_path):
    """An environment in which no Python process reaches the network, and the two logs."""
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    network, started = tmp_path / "network.log", tmp_path / "started.log"
    network.touch()
    logs = {"NETWORK_LOG": str(network), "STARTED_LOG": str(started), "PYTHONPATH": str(guard)}
    return dict(os.environ) | logs, network, started


def test_the_guard_works(denied):
    env, network, _ = denied
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "the network is denied" in done.stderr
    assert network.read_text().count("socket.") == 1


def test_a_run_makes_no_network_call(denied, tmp_path):
    env, network, started = denied
    model, inputs = jobs.write_files(tmp_path)  # an exported program that takes one row at a time
    recipes = ["fp32@onnxruntime", *(["int8@openvino"] if jobs.HAS_OPENVINO else [])]
    words = [word for recipe in recipes for word in ("--recipe", recipe)]
    words += ["--select", "data.py:both", "--max-drop", "10", "--out", "run", "--pace", "quick", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "karui", "optimize", "net.pt2", *words],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert {row["recipe"] for row in facts["trials"]} >= set(recipes)
    assert [row["reason"] for row in facts["trials"] if row["status"] == "failed"] == []
    assert network.read_text() == ""
    begun = started.read_text()
    assert "karui.builder" in begun  # the guard was there in the children too
    assert begun.count("karui.bench.worker") >= len(recipes)
    with torch.no_grad():
        answer = karui.load(tmp_path / "run" / "trials" / "onnxruntime-fp32" / "artifact")(inputs[:1])
        assert torch.allclose(answer, model(inputs[:1]), atol=1e-5)
    html = (tmp_path / "run" / "report.html").read_text()
    assert 'src="http' not in html
    assert 'href="http' not in html.replace('href="https://www.w3.org', "")
