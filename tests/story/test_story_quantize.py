"""``karui quantize``: artifacts in INT8 and nothing else, with the words a user reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import karui
from karui.cli.main import main

SCRIPT = """
import torch
from torch import nn
import karui

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
x = torch.randn(200, 16)
task = karui.Task(net, inputs=x[:2], calibrate=[(x,)])
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "quant.py").write_text(SCRIPT)
    return f"{tmp_path / 'quant.py'}:task"


@pytest.mark.gate
def test_artifacts_for_two_runtimes_from_calibration_data_alone(script, tmp_path, capsys):
    out = tmp_path / "made"
    words = ["quantize", script, "--runtime", "onnxruntime", "--runtime", "openvino:calibration=mse"]
    assert main([*words, "--keep", "4", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "int8[4=fp32]@onnxruntime\n" in said and "int8[4=fp32]@openvino:calibration=mse\n" in said
    assert "kept in FP32 by a rule ×1" in said and "agreement" in said and "most disturbed by" in said
    x = torch.randn(3, 16)
    for folder in sorted(out.iterdir()):
        assert {"ranges.json", "ranges.safetensors", "manifest.json"} <= {
            file.name for file in folder.iterdir()
        }
        assert np.isfinite(karui.load(folder)(x).numpy()).all()
    assert len(list(out.iterdir())) == 2


def test_what_fails_beside_what_works_is_told(script, tmp_path, capsys):
    out = tmp_path / "made"
    words = ["quantize", script, "--runtime", "onnxruntime", "--runtime", "openvino:calibration=mean"]
    assert main([*words, "--out", str(out), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["made"]
    assert made[0]["executed"]["int8_macs"] == 1.0 and made[0]["score"]["value"] > 0.9
    assert "no calibration 'mean'" in made[1]["failure"]


def test_bad_words_leave_nothing_behind(script, tmp_path, capsys):
    out = tmp_path / "made"
    assert main(["quantize", script, "--keep", "tail", "--out", str(out)]) == 2
    assert "no layer fits the rule 'tail'" in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    assert main(["quantize", script, "--out", str(out)]) == 2
    assert "there already" in capsys.readouterr().err
