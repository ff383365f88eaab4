"""The main job with the timed side in another environment: rows, baseline, flags, and a pipe that drops."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys

import numpy as np
import onnx
import pytest
import torch
from lines import AGENT, elsewhere
from onnx import numpy_helper
from tests.story import jobs

import karui
from karui import host, journal
from karui.cli.main import main
from karui.errors import Unreachable, UsageError
from karui.optimize.again import verify_again

# Between driver and agent: takes VNNI off what the machine has, or cuts the pipe once, at a given moment.
BETWEEN = """
import os, re, subprocess, sys, threading
from pathlib import Path

what, state, *command = sys.argv[1:]
pipe = subprocess.PIPE
agent = subprocess.Popen(command, stdin=pipe, stdout=pipe)

def back():
    while data := os.read(agent.stdout.fileno(), 1 << 20):
        if what == "no-vnni":
            data = re.sub(rb'"(avx512_vnni|avx_vnni)", ', b"", data)
        os.write(1, data)
    os.close(1)

threading.Thread(target=back, daemon=True).start()
opened = 0
while data := os.read(0, 1 << 16):
    opened += data.count(b'"do": "open"')
    if what.isdigit() and opened == int(what) and not Path(state).exists():
        Path(state).touch()
        print("the cable was pulled", file=sys.stderr)
        sys.exit()
    agent.stdin.write(data)
    agent.stdin.flush()
agent.stdin.close()
agent.wait()
"""


@pytest.fixture(scope="module")
def between(tmp_path_factory):
    folder = tmp_path_factory.mktemp("between")
    (folder / "between.py").write_text(BETWEEN)

    def address(what: str, rest: str) -> str:
        command = rest.partition(":")[2]
        return f"pipe:{sys.executable} {folder}/between.py {what} {folder}/{what} {command}"

    return address


RECIPES = ("fp32@onnxruntime", "int8@onnxruntime:quantizer=onnxruntime", "int8_dynamic@onnxruntime")
PIPE = f"pipe:{shlex.join(AGENT)}"


@pytest.fixture(scope="module")
def onnx_task(tmp_path_factory):
    """A model as a file: its baseline is ONNX Runtime, and no process that is timed loads torch."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 3)).eval()
    path = folder / "net.onnx"
    path.write_bytes(jobs.onnx_of(net))
    inputs, _ = jobs.labelled(net, 64, rows=600)
    return karui.Task(model=path, select=jobs.clear(net, inputs), name="elsewhere")


def rows(result):
    return {trial["id"]: trial for trial in result.facts["trials"]}


@pytest.mark.gate
def test_the_same_candidates_come_to_the_same_over_a_pipe(onnx_task, second, tmp_path):
    settings = jobs.quick(*RECIPES)
    here = karui.optimize(onnx_task, max_drop=5, out=tmp_path / "here", settings=settings)
    on = elsewhere(second, tmp_path / "home")
    there = karui.optimize(onnx_task, max_drop=5, out=tmp_path / "there", on=on, settings=settings)
    mine, theirs = rows(here), rows(there)
    assert list(mine) == list(theirs)
    for name, one in mine.items():
        other = theirs[name]
        assert one["status"] == other["status"], other["reason"]
        assert one["quality"] == other["quality"]
        assert one["size_bytes"] == other["size_bytes"]
        assert other["verification"]["status"] == "verified on runtime"
        assert other["latency_s"]["n"] > 0 and other["peak_memory_bytes"] > 1_000_000
        a, b = one["speedup"], other["speedup"]
        assert a["low"] / 1.1 <= b["high"] and b["low"] / 1.1 <= a["high"]
        assert (tmp_path / "there" / other["log"]).is_file()
    assert there.facts["target"]["on"] == on
    assert list((tmp_path / "home").iterdir()) == []  # nothing is left there
    check_later(there, on)


def check_later(result, on):
    """``karui verify`` runs it there again, and compares no speed across machines."""
    best = result.folder / "trials" / "onnxruntime-fp32" / "artifact"
    assert verify_again(best, result.folder, speed=False, on=on)["ok"]
    with pytest.raises(UsageError, match="the run was timed on") as caught:
        verify_again(best, result.folder)
    assert f"--on {on}" in caught.value.fix


@pytest.fixture(scope="module")
def without_torch(second, between, tmp_path_factory):
    """A run whose other machine has neither torch nor VNNI."""
    folder = tmp_path_factory.mktemp("plain")
    model = jobs.mlp()
    task = karui.Task(model=model, select=jobs.clear(model, jobs.labelled(model, 8, rows=500)[0]))
    settings = jobs.quick("fp32@torch_eager", "round_weights:method=nearest + int8@onnxruntime")
    on = between("no-vnni", elsewhere(second, folder / "home"))
    return karui.optimize(task, max_drop=20, out=folder / "run", on=on, settings=settings)


@pytest.mark.gate
def test_a_baseline_that_cannot_run_there_is_said_and_replaced(without_torch):
    facts = without_torch.facts
    assert facts["baseline"] == "onnxruntime-fp32"
    assert facts["trials"][0]["speedup"]["verdict"] == "baseline"
    (refused,) = [entry for entry in facts["refused"] if entry["recipe"] == "fp32@torch_eager"]
    assert "not on pipe:" in refused["reason"] and "not installed" in refused["reason"]
    assert any("ratios are taken against fp32@onnxruntime" in note for note in facts["warnings"])
    assert facts["trials"][1]["speedup"]["against"] == "onnxruntime-fp32"


@pytest.mark.gate
def test_int8_is_made_for_the_cpu_that_runs_it(without_torch):
    """The other machine has no VNNI, so that 8-bit weights would saturate there, whatever this one has."""
    trial = without_torch.facts["trials"][1]
    assert trial["precision"] == "int8" and trial["latency_s"]
    folder = without_torch.folder / trial["artifact"]
    stored = onnx.load(folder / "model.onnx").graph.initializer
    weights = [numpy_helper.to_array(one) for one in stored if one.data_type == onnx.TensorProto.INT8]
    weights = [one for one in weights if one.ndim == 2]
    assert weights and max(np.abs(one.astype(int)).max() for one in weights) <= 64
    steps = json.loads((folder / "manifest.json").read_text())["executed"]["steps"]
    assert [step["bits"] for step in steps.values()] == [7]


@pytest.mark.gate
def test_host_facts_are_those_of_the_machine_that_timed(without_torch):
    facts = without_torch.facts
    manifest = json.loads(
        (without_torch.folder / facts["trials"][1]["artifact"] / "manifest.json").read_text()
    )
    for flags in (facts["host"]["flags"], manifest["host"]["flags"]):
        assert not {"avx512_vnni", "avx_vnni"} & set(flags)
        assert {"avx512_vnni", "avx_vnni"} & set(host.telling(host.flags())) or "avx2" not in host.flags()
    assert manifest["host"]["cpu"] == facts["host"]["cpu"]
    report = (without_torch.folder / "report.html").read_text()
    assert re.search(r"timed on</\w+>\s*<\w+[^>]*>pipe:", report)
    assert "on `pipe:" in (without_torch.folder / "report.md").read_text()
    assert "target cpu on pipe:" in without_torch.table()


@pytest.mark.gate
def test_a_pipe_that_drops_costs_one_trial(onnx_task, between, tmp_path):
    """It drops while the second trial is opened; the third, and the end of the run, have a new connection."""
    result = karui.optimize(
        onnx_task, max_drop=5, out=tmp_path / "run", on=between("2", PIPE), settings=jobs.quick(*RECIPES)
    )
    first, second, third = result.facts["trials"]
    assert (first["status"], second["status"]) == ("kept", "failed")
    assert "the connection has ended: the cable was pulled" in second["reason"]
    assert third["latency_s"] and third["speedup"]["against"] == "onnxruntime-fp32"
    assert third["status"] in ("kept", "rejected")
    events = [event["event"] for event in journal.read(tmp_path / "run")]
    assert events == ["start", "trial", "trial", "trial", "end"]


@pytest.mark.gate
def test_a_machine_that_cannot_be_reached_is_one_error_before_anything_is_built(onnx_task, tmp_path):
    with pytest.raises(Unreachable, match="no agent answers"):
        karui.optimize(onnx_task, out=tmp_path / "run", on="pipe:false", settings=jobs.quick(*RECIPES))
    with pytest.raises(Unreachable) as caught:
        karui.optimize(onnx_task, out=tmp_path / "run", on="ssh://127.0.0.1:1", settings=jobs.quick(*RECIPES))
    assert "refused" in caught.value.why or "127.0.0.1" in caught.value.why
    assert not (tmp_path / "run").exists()


@pytest.mark.gate
def test_the_command_line_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """``--on`` stands in run.json, and a run there is not gone on with here."""
    monkeypatch.chdir(tmp_path)
    jobs.write_files(tmp_path)
    words = ["net.onnx", "--select", "data.py:both", "--recipe", "fp32@onnxruntime", "--pace", "quick"]
    call = ["optimize", *words, "--out", "run", "--on", PIPE, "--max-drop", "5"]
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(call) in (0, 3)
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    assert saved["options"]["on"] == PIPE
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    (tmp_path / "run" / "journal.jsonl").write_text("\n".join(lines[:-1]) + "\n")  # as if it had been killed
    os.unlink(tmp_path / "run" / "result.json")
    assert main(["resume", "run"]) in (0, 3)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["target"]["on"] == PIPE
    (tmp_path / "run" / "journal.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    capsys.readouterr()
    assert main([word for word in call if word not in ("--on", PIPE)]) == 2
    assert "different: machine" in capsys.readouterr().err


def test_doctor_tells_what_the_other_machine_can_run(second, tmp_path, capsys):
    assert main(["doctor", "--on", elsewhere(second, tmp_path / "home"), "--json"]) == 0
    states = json.loads(capsys.readouterr().out)["runtimes"]
    assert states["onnxruntime"] == "ready"
    assert "not installed" in states["torch_eager"] and "not installed" in states["openvino"]


def test_an_agent_that_is_started_by_hand_says_what_it_is_for(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["agent"]) == 2
    assert "--on ssh://" in capsys.readouterr().err
