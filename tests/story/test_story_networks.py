"""Four kinds of network go through ``karui.optimize`` with nothing but a model and data."""

from __future__ import annotations

from importlib.util import find_spec

import jobs
import pytest
import torch
from torch import nn

import karui

pytestmark = pytest.mark.gate

RECIPES = ["fp32@onnxruntime", "int8@onnxruntime", "int8_dynamic@onnxruntime"]
RECIPES += ["fp32@openvino", "int8@openvino"] if find_spec("openvino") and find_spec("nncf") else []


class Cnn(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU()
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Lstm(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.lstm, self.head = nn.LSTM(6, 24, batch_first=True), nn.Linear(24, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Transformer(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.embed, self.place = nn.Embedding(30, 16), nn.Parameter(torch.randn(10, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens) + self.place).mean(1))


CASES = {
    "cnn": (Cnn, lambda made: torch.randn(500, 1, 12, 12, generator=made)),
    "mlp": (lambda: jobs.mlp(8, 4), lambda made: torch.randn(500, 8, generator=made)),
    "lstm": (Lstm, lambda made: torch.randn(500, 7, 6, generator=made)),
    "transformer": (Transformer, lambda made: torch.randint(0, 30, (500, 10), generator=made)),
}


def separated(model, inputs):
    """Labels the model is right about, with a wide margin, so that INT8 does not change many answers."""
    with torch.no_grad():
        scores = model(inputs)
    best = scores.topk(2, 1).values
    clear = (best[:, 0] - best[:, 1]).argsort(descending=True)[:400]
    return inputs[clear], scores[clear].argmax(1)


@pytest.mark.parametrize("name", CASES)
def test_a_network_goes_through_with_no_settings(tmp_path, name):
    make, draw = CASES[name]
    torch.manual_seed(0)
    model, inputs = make().eval(), draw(torch.Generator().manual_seed(1))
    before = jobs.portrait(model)
    result = karui.optimize(
        karui.Task(model=model, select=separated(model, inputs)),
        max_drop=5,  # 150 samples decide that much
        out=tmp_path / "run",
        settings=jobs.quick(*RECIPES),
    )
    rows = {row["recipe"]: row for row in result.facts["trials"]}
    rows |= {row["recipe"]: row | {"status": "refused"} for row in result.facts["refused"]}
    assert set(rows) >= set(RECIPES)
    assert all(row["status"] in ("kept", "rejected", "refused") for row in rows.values()), [
        row["reason"] for row in rows.values() if row["status"] == "failed"
    ]
    assert all(row["reason"] for row in rows.values())
    for runtime in ("onnxruntime", "openvino"):
        if f"fp32@{runtime}" in rows:
            assert rows[f"fp32@{runtime}"]["quality"]["drop"] == 0
    assert any(row["precision"].startswith("int8") and row["status"] != "refused" for row in rows.values())
    assert (result.exit_code, jobs.portrait(model)) == (0, before)
    with torch.no_grad():
        few = inputs[:3]
        agree = karui.load(result.best)(few).argmax(1) == model(few).argmax(1)
    assert agree.shape == (3,)
