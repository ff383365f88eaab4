"""Targets: which recipes each tries, a run on a phone's runtime, and runtimes that are not installed."""

from __future__ import annotations

import base64
import json
import sys

import jobs
import numpy as np
import pytest
import torch

import karui
from karui import presets, runtimes
from karui.artifact import ON_GPU
from karui.bench.compare import compare
from karui.bench.machine import Conditions
from karui.budget import Budget
from karui.cli.doctor import remedy
from karui.cli.main import main
from karui.data import open_arrays
from karui.errors import MeasureFailed
from karui.presets import gpu

OFFERED = {"all", "browser", "cpu", "edge", "gpu", "mobile"}


@pytest.mark.parametrize("target", presets.names())
def test_a_target_lists_runtimes_that_exist_each_recipe_once(target):
    for budget in (Budget(), Budget(max_latency_s=1e-3)):
        found = presets.recipes(target, budget)
        assert {recipe.runtime.name for recipe in found} <= set(runtimes.names())
        assert len(set(found)) == len(found) > 3


def test_what_is_offered():
    used = {
        name: {recipe.runtime.name for recipe in presets.recipes(name, Budget())} for name in presets.names()
    }
    assert set(used) == OFFERED
    assert used["browser"] == {"ort_web"} and not used["browser"] & used["cpu"]
    assert used["mobile"] == {"executorch", "litert", "coreml"} and not used["mobile"] & used["cpu"]
    assert used["gpu"] == {"tensorrt", "onnxruntime", "torch_eager", "torch_compile"}
    assert "tensorrt" not in used["cpu"]
    assert used["all"] == set.union(*(used[name] for name in OFFERED - {"all"}))
    assert used["all"] == set(runtimes.names())


@pytest.mark.gate
def test_a_phones_runtimes_take_part_in_a_run(tmp_path):
    pytest.importorskip("executorch")
    pytest.importorskip("ai_edge_litert")
    made = [
        f"{precision}@{runtime}" for runtime in ("executorch", "litert") for precision in ("fp32", "int8")
    ]
    result = karui.optimize(
        jobs.mlp_task(),
        karui.Target("mobile", ("executorch", "litert")),
        budget=karui.Budget(max_drop=100),
        out=tmp_path / "run",
        settings=jobs.quick(*made, "fp16@executorch", "bf16@litert"),
    )
    trials = {trial["recipe"]: trial for trial in result.facts["trials"]}
    assert set(trials) == {"fp32@torch_eager", *made}
    for trial in trials.values():
        assert trial["status"] in ("kept", "rejected"), trial["reason"]
        assert trial["verification"]["status"] == "verified on runtime"
        assert trial["speedup"]["ratio"] > 0 and trial["samples_s"]
    for runtime in ("executorch", "litert"):
        assert trials[f"int8@{runtime}"]["executed"]["int8_macs"] == 1.0
        assert trials[f"int8@{runtime}"]["speedup_same_runtime"]["against"] == f"{runtime}-fp32"
        assert f"fp32@{runtime}" in result.table()
    assert "not tried" in result.table()
    assert [entry["recipe"] for entry in result.facts["refused"]] == ["fp16@executorch", "bf16@litert"]


@pytest.mark.gate
@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is measured here")
def test_what_cannot_run_here_is_verified_kept_and_listed_and_never_chosen(tmp_path, capsys):
    pytest.importorskip("coremltools")
    result = karui.optimize(
        jobs.mlp_task(),
        karui.Target("mobile"),
        budget=karui.Budget(max_drop=100),
        out=tmp_path / "run",
        settings=jobs.quick("fp32@coreml", "int8_weights@coreml"),
    )
    trials = {trial["recipe"]: trial for trial in result.facts["trials"]}
    for recipe in ("fp32@coreml", "int8_weights@coreml"):
        trial = trials[recipe]
        assert trial["status"] == "kept", trial["reason"]
        why = "verified by reference, not measured on this host: Core ML runs on macOS only"
        assert trial["reason"] == f"within budget; {why}"
        assert trial["verification"]["status"] == "verified by reference"
        assert trial["verification"]["stands_in"] == "Core ML runs on macOS only"
        assert trial["latency_s"] is trial["speedup"] is trial["samples_s"] is None  # no guessed time
        assert trial["quality"]["n"] and trial["size_bytes"]
    assert result.best is None and not set(result.facts["pareto"]) & {t["id"] for t in trials.values()} - {
        "torch_eager-fp32"
    }
    assert result.facts["verdict"]["exit_code"] == 3
    assert "not measured on this host: fp32@coreml" in result.facts["verdict"]["detail"]
    assert "int8_weights@coreml" in result.table()
    assert "not measured on this host" in (tmp_path / "run" / "report.md").read_text()

    folder = tmp_path / "run" / "trials" / "coreml-fp32" / "artifact"
    assert main(["verify", str(folder)]) == 0
    shown = tmp_path / "bare"
    assert main(["export", str(folder), "--to", str(shown), "--bare"]) == 0
    assert (shown / "verify_on_mac.py").is_file() and (shown / "model.mlpackage").is_dir()
    capsys.readouterr()
    with pytest.raises(MeasureFailed, match="not measured on this host"):
        compare([folder, folder], Conditions(limits=jobs.PATIENT), jobs.SHORT)


@pytest.mark.gate
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it is measured")
def test_a_gpu_that_is_not_here_gives_checked_files_reasons_and_no_choice(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    sparse = 'prune_weights:pattern="2:4" + fp16@tensorrt'
    ready = ("fp16@tensorrt", sparse)
    refused = ("int8_dynamic@tensorrt", gpu.TORCH[0], gpu.TORCH[-1], *gpu.PROVIDERS)
    result = karui.optimize(
        jobs.mlp_task(),
        karui.Target("gpu"),
        budget=karui.Budget(max_drop=100),
        out=tmp_path / "run",
        settings=jobs.quick(*ready, *refused),
    )
    trials = {trial["recipe"]: trial for trial in result.facts["trials"]}
    for recipe in ready:
        trial = trials[recipe]
        assert trial["status"] == "kept", trial["reason"]
        assert trial["reason"].startswith(
            "within budget; rule-checked, not measured on this host: needs an NVIDIA GPU"
        )
        assert trial["verification"]["status"] == "rule-checked"
        assert trial["latency_s"] is trial["speedup"] is trial["samples_s"] is None  # no guessed time
        assert trial["quality"]["n"] and trial["size_bytes"]
    assert trials[sparse]["executed"]["sparse_layers"] == 2
    reasons = {entry["recipe"]: entry["reason"] for entry in result.facts["refused"]}
    assert set(reasons) == set(refused)
    assert all("GPU" in reason for recipe, reason in reasons.items() if recipe != "int8_dynamic@tensorrt")
    assert result.best is None and result.facts["verdict"]["exit_code"] == 3
    assert all(recipe in result.facts["verdict"]["detail"] for recipe in ready)
    said = [result.table(), *((tmp_path / "run" / f"report.{kind}").read_text() for kind in ("md", "html"))]
    assert all("rule-checked" in text and "verified by reference" not in text for text in said)

    folder = tmp_path / "run" / "trials" / "tensorrt-fp16" / "artifact"
    assert main(["verify", str(folder)]) == 0
    assert main(["doctor"]) == 0
    assert "rule-checked here: needs an NVIDIA GPU" in capsys.readouterr().out
    assert main(["export", str(folder), "--to", str(tmp_path / "bare"), "--bare"]) == 0
    assert {file.name for file in (tmp_path / "bare").iterdir()} >= {"model.onnx", *ON_GPU[:4]}


@pytest.mark.gate
def test_a_browser_takes_part_in_a_run(tmp_path):
    result = karui.optimize(
        jobs.mlp_task(),
        karui.Target("browser"),
        budget=karui.Budget(max_drop=100),
        out=tmp_path / "run",
        settings=jobs.quick("fp32@ort_web", "int8@ort_web", "bf16@ort_web", "int8@ort_web:provider=webgpu"),
    )
    trials = {trial["recipe"]: trial for trial in result.facts["trials"]}
    assert set(trials) == {"fp32@torch_eager", "fp32@ort_web", "int8@ort_web"}
    for trial in trials.values():
        assert trial["status"] in ("kept", "rejected"), trial["reason"]
        assert trial["verification"]["status"] == "verified on runtime"
        assert trial["speedup"]["ratio"] > 0 and trial["samples_s"]
    assert trials["int8@ort_web"]["executed"]["int8_macs"] == 1.0
    assert trials["int8@ort_web"]["speedup_same_runtime"]["against"] == "ort_web-fp32"
    reasons = {entry["recipe"]: entry["reason"] for entry in result.facts["refused"]}
    assert "bfloat16" in reasons["bf16@ort_web"]
    assert "no INT8 kernels" in reasons["int8@ort_web:provider=webgpu"]

    artifact, shown = tmp_path / "run" / "trials" / "ort_web-int8" / "artifact", tmp_path / "shown"
    assert main(["export", str(artifact), "--to", str(shown), "--page", "--samples", "4"]) == 0
    text = (shown / "index.html").read_text().partition('id="config">')[2].partition("</script>")[0]
    config, rows = json.loads(text), open_arrays(tmp_path / "run" / "data" / "probe")
    (port,) = config["inputs"]
    held = [np.frombuffer(base64.b64decode(sample[0]), port["type"]) for sample in config["samples"]]
    np.testing.assert_array_equal(held, rows[port["name"]][:4])
    assert config["title"] == "mlp" and not config["random"]


@pytest.mark.gate
def test_a_missing_package_browser_or_converter_is_a_row_and_breaks_nothing(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("karui.runtimes.exec", "executorch."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setenv("KARUI_CHROMIUM", str(tmp_path / "none"))
    monkeypatch.setenv("KARUI_LITERT_PYTHON", str(tmp_path / "nowhere"))
    result = karui.optimize(
        jobs.mlp_task(),
        karui.Target("all"),
        out=tmp_path / "run",
        settings=jobs.quick("fp32@executorch", "fp32@litert", "fp32@ort_web", "fp32@onnxruntime"),
    )
    assert {trial["recipe"] for trial in result.facts["trials"]} == {"fp32@torch_eager", "fp32@onnxruntime"}
    reasons = {entry["runtime"]: entry["reason"] for entry in result.facts["refused"]}
    assert set(reasons) == {"executorch", "litert", "ort_web"}
    assert "bin/pip install torch==" in reasons["litert"] or "karui[litert]" in reasons["litert"]
    assert reasons["executorch"] == "not installed: pip install 'karui[executorch]'"
    assert reasons["ort_web"].startswith("not installed: apt-get install chromium")
    monkeypatch.setenv("KARUI_ORT_WEB", str(tmp_path))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert (
        "not installed: pip install 'karui[executorch]'" in said
        and "targets: all, browser, cpu, edge, gpu" in said
    )
    (line,) = [line for line in said.splitlines() if line.strip().startswith("ort_web")]
    assert "not installed: npm install" in line and "apt-get install chromium" in line
    targets = said.partition("targets: ")[2].splitlines()
    (edge,) = [line for line in targets if line.strip().startswith("edge")]
    assert edge.split(";")[0].endswith(" onnxruntime")
    assert "lacking executorch, litert: pip install 'karui[executorch]' && " in edge
    (browser,) = [line for line in targets if line.strip().startswith("browser")]
    assert "nothing to run; lacking ort_web: npm install" in browser
    (phone,) = [line for line in targets if line.strip().startswith("mobile")]
    assert "not run here: coreml (" in phone or sys.platform == "darwin"
    (gpu_line,) = [line for line in targets if line.strip().startswith("gpu")]
    assert "onnxruntime (this onnxruntime has no CUDA" in gpu_line or torch.cuda.is_available()


def test_one_command_brings_several_extras():
    commands = ["pip install 'karui[executorch]'", "npm install x", "pip install 'karui[coreml]'"]
    assert remedy(commands) == "pip install 'karui[executorch,coreml]' && npm install x"
    assert remedy([]) == ""
