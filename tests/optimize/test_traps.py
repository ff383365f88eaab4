"""What often is slower than it sounds is never the choice where float is faster, and the run says so.

Dynamic INT8 of convolutions and half precision on a CPU, INT8 around a norm that cannot be folded, a
smoothed transformer in INT8, and weights in 8 or 4 bits that are unpacked at every call.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import karui
from karui.bench.rounds import Pace
from karui.optimize import Settings

SHORT = Pace(least=15, most=40, seconds=3.0)


class Unfolded(nn.Module):
    """Norms that stand before their convolutions, so that nothing takes them in. (n, 3, 16, 16) -> (n, 4)"""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 16, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.conv1(torch.relu(self.norm1(x)))
        seen = seen + self.conv2(torch.relu(self.norm2(seen)))
        return self.head(seen.mean((2, 3)))


class Transformer(nn.Module):
    """(n, 12, 16) -> (n, 4)"""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.encoder, self.head = (
            nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
            nn.Linear(16, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(1))


class Linears(nn.Module):
    """(n, 64) -> (n, 4)"""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
        self.head = nn.Linear(256, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


WEIGHTS = ("int8_weights@onnxruntime", "int4_weights@onnxruntime:rounding=nearest", "int8_weights@openvino")
CASES = {
    "convolutions": (
        Unfolded,
        (3, 16, 16),
        ("fp16@torch_eager", "int8@onnxruntime", "int8_dynamic@onnxruntime"),
    ),
    "transformer": (Transformer, (12, 16), ("fp16@torch_eager", "smooth + int8@onnxruntime")),
    "weights": (Linears, (64,), WEIGHTS),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A run over the traps of one network and FP32 in the same runtimes."""
    kind, shape, traps = CASES[request.param]
    torch.manual_seed(0)
    net = kind()
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((240, *shape)).astype(np.float32))
    net(x), net.eval()
    task = karui.Task(net, x[:4], calibrate=[x[:64]], select=[x[64:]], score="agreement")
    settings = Settings(recipes=("fp32@onnxruntime", *traps), mixed=0, pace=SHORT, final=SHORT)
    folder = tmp_path_factory.mktemp("traps") / "run"
    return traps, karui.optimize(task, max_drop=50, out=folder, settings=settings)


@pytest.mark.gate
def test_no_trap_is_chosen_where_float_is_faster_and_the_run_says_why(case):
    traps, run = case
    trials = {trial["recipe"]: trial for trial in run.facts["trials"]}
    assert not [trial["reason"] for trial in trials.values() if trial["status"] == "failed"]
    found = {trap: speeds(trials[trap]) for trap in traps}
    chosen = [found[trap] for trap in traps if trials[trap]["id"] == run.facts["best"]]
    assert all(speed == "faster" for each in chosen for speed in each)
    slower = [trap for trap, each in found.items() if "slower" in each]
    for trap in slower:
        (line,) = [line for line in run.table().splitlines() if f" {trap} " in line]
        assert "slower here" in line
    assert traps is not WEIGHTS or "int8_weights@onnxruntime" in slower


def speeds(trial: dict) -> set[str]:
    """Verdicts beside eager PyTorch and FP32 in the same runtime."""
    return {trial["speedup"]["verdict"], trial["speedup_same_runtime"]["verdict"]}


def test_convolutions_never_run_in_dynamic_int8(case):
    for trial in case[1].facts["trials"]:
        if trial["precision"] == "int8_dynamic":
            assert "ConvInteger" not in trial["executed"]["detail"]
            assert {entry["op"] for entry in trial["executed"]["fallback"]} == {"Conv"}
