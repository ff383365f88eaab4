"""FP16 with overflow found on calibration data: what stays in FP32, by name, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnxruntime.transformers.float16 import convert_float_to_float16
from tests.runtimes.onnx_nets import far
from torch import nn

from karui.errors import Unsupported
from karui.graph.call import run_all, signature_of
from karui.graph.capture import capture
from karui.graph.onnx import export_onnx
from karui.graph.program import open_exported
from karui.graph.trace import op_name
from karui.numerics import parse_numerics
from karui.recipe import parse_named
from karui.runtimes import Built, Runtime, Source, load

ROWS = 64


class Loud(nn.Module):
    """The layer ``loud`` answers a million; the next brings it back. (n, 16) -> (n, 4)"""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.loud, self.back = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)
        with torch.no_grad():
            self.first.weight *= 30
            self.loud.weight *= 3e4
            self.back.weight *= 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.back(torch.relu(self.loud(torch.relu(self.first(x)))))
        return self.head(self.norm(seen)).softmax(-1)


class Tricky(nn.Module):
    """Writes in place, a mask of the lowest float, and a quotient by what FP16 takes for zero. (n, 8)"""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.mask = nn.Buffer(torch.tensor([0.0] * 6 + [torch.finfo(torch.float32).min] * 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.one(x).relu_().view(-1, 2, 4)
        seen.add_(0.5).mul_(2.0)
        attended = (self.two(seen.flatten(1)) + self.mask).softmax(-1)
        gap = (attended - attended).abs()
        return attended + gap / (gap + 1e-9)


@dataclasses.dataclass(frozen=True)
class Net:
    model: nn.Module
    source: Source
    half: Source
    answers: np.ndarray


def net_of(model: nn.Module, rows: torch.Tensor, folder: Path) -> Net:
    """Captured in FP32, and in FP16 by what ``rows`` show."""
    signature, arrays = signature_of(model.eval(), rows, 1)
    answers = run_all(model, signature.style, arrays)[0]
    numerics = parse_numerics("fp16")
    sources = []
    for precision in ("fp32", "fp16"):
        told = capture(copy.deepcopy(model), signature, arrays, folder / precision, precision)
        sources.append(Source(folder / precision, told, numerics, arrays, arrays))
    return Net(model, *sources, answers)


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> dict[str, Net]:
    torch.manual_seed(0)
    return {
        "loud": net_of(Loud(), torch.randn(ROWS, 16), tmp_path_factory.mktemp("loud")),
        "tricky": net_of(Tricky(), torch.randn(ROWS, 8), tmp_path_factory.mktemp("tricky")),
    }


def built(name: str, net: Net, folder: Path) -> tuple[Runtime, Built]:
    runtime = load(parse_named(name))
    return runtime, runtime.build(net.half if runtime.casts_in_torch("fp16") else net.source, folder)


def named(executed) -> dict[str, str]:
    return {entry["node"].rstrip("_1"): entry["reason"] for entry in executed["fallback"]}


@pytest.mark.gate
@pytest.mark.parametrize("runtime", ["torch_eager", "torchscript", "onnxruntime", "tensorrt"])
def test_a_layer_that_passes_the_end_of_fp16_stays_in_fp32_and_is_named(nets, tmp_path, runtime):
    net = nets["loud"]
    made, told = built(runtime, net, tmp_path)
    found = made.load(tmp_path, net.source.signature, 1)(dict(net.source.probe))[0]
    assert far(found, net.answers) <= 2e-3
    assert set(named(told.executed)) == {"loud", "relu", "back"}
    with torch.no_grad():
        seen = torch.relu(net.model.first(torch.tensor(next(iter(net.source.probe.values())))))
        reach = float(net.model.loud(seen).abs().max())
    assert reach > 2e5
    assert set(named(told.executed).values()) == {f"values up to {reach:.3g}, where FP16 ends at 65504"}
    assert (
        "in FP32: loud, relu" in told.executed["detail"] and "sensitive, in FP32" in told.executed["detail"]
    )


@pytest.mark.gate
def test_without_that_the_same_model_gives_nan(nets):
    net = nets["loud"]
    (rows,) = net.source.probe.values()
    with torch.no_grad():
        assert torch.isnan(copy.deepcopy(net.model).half()(torch.tensor(rows).half())).any()


@pytest.mark.gate
def test_the_onnx_file_holds_in_the_types_that_it_says(nets, tmp_path):
    """By the reference evaluator, which keeps values in the file's types; ONNX Runtime on a CPU does not."""
    net = nets["loud"]
    (rows,) = net.source.probe.values()
    export_onnx(net.source.folder, net.source.signature, tmp_path / "plain.onnx")
    naive = convert_float_to_float16(onnx.load(tmp_path / "plain.onnx"), keep_io_types=True)
    built("onnxruntime", net, tmp_path)
    made = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(made, full_check=True)
    with np.errstate(all="ignore"):
        literal = [ReferenceEvaluator(one).run(None, {"x": rows})[0] for one in (sorted_(naive), made)]
    assert not np.isfinite(literal[0]).all()
    assert far(literal[1], net.answers) <= 2e-3
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert kinds["first.weight"] == kinds["head.weight"] == TensorProto.FLOAT16
    assert kinds["loud.weight"] == kinds["back.weight"] == TensorProto.FLOAT


def sorted_(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx_ir as ir

    del model.graph.value_info[:]
    ordered = ir.from_proto(model)
    ordered.graph.sort()
    return ir.to_proto(ordered)


def test_sums_and_exponentials_are_computed_in_fp32_and_layers_in_fp16(nets):
    program = open_exported(nets["loud"].half.folder / "model.pt2")
    inputs = {
        node.name: (op_name(node), {part.meta["val"].dtype for part in node.all_input_nodes})
        for node in program.graph.nodes
        if node.op == "call_function"
    }
    read = {kind: types for kind, types in inputs.values() if kind in ("softmax", "layer_norm")}
    assert read == {"softmax": {torch.float32}, "layer_norm": {torch.float32}}
    layers = [next(iter(types)) for kind, types in inputs.values() if kind == "linear"]
    assert layers == [torch.float16, torch.float32, torch.float32, torch.float16]


def test_writes_in_place_masks_and_quotients_come_out_right(nets, tmp_path):
    net = nets["tricky"]
    made, told = built("torch_eager", net, tmp_path)
    found = made.load(tmp_path, net.source.signature, 1)(dict(net.source.probe))[0]
    assert far(found, net.answers) <= 2e-3
    reasons = [entry["reason"] for entry in told.executed["fallback"]]
    assert any(reason.startswith("values up to 3.4e+38") for reason in reasons)
    assert any(reason.startswith("in FP16 it gives NaN or infinity") for reason in reasons)
    (rows,) = net.source.probe.values()
    with torch.no_grad():
        assert not torch.isfinite(copy.deepcopy(net.model).half()(torch.tensor(rows).half())).all()


@pytest.mark.gate
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_weights_beyond_fp16_are_refused_by_name(tmp_path, runtime):
    model, rows = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval(), torch.randn(8, 4)
    with torch.no_grad():
        model[1].weight[0, 0] = 7e4
    signature, arrays = signature_of(model, rows, 1)
    with pytest.raises(Unsupported, match="the weights of 1.weight reach 7e.04, and FP16 ends") as error:
        precision = "fp16" if runtime == "torch" else "fp32"
        signature = capture(copy.deepcopy(model), signature, arrays, tmp_path / "plain", precision)
        source = Source(tmp_path / "plain", signature, parse_numerics("fp16"), arrays, arrays)
        load(parse_named(runtime)).build(source, tmp_path)
    assert "bf16" in error.value.fix


def test_bfloat16_on_a_cpu_without_it_is_said(nets, tmp_path):
    signature = nets["tricky"].source.signature
    arrays = nets["tricky"].source.probe
    signature = capture(copy.deepcopy(nets["tricky"].model), signature, arrays, tmp_path / "bf16", "bf16")
    for flags, said in (({"avx2"}, True), ({"avx2", "avx512_bf16"}, False)):
        asked = Source(
            tmp_path / "bf16", signature, parse_numerics("bf16"), arrays, arrays, flags=frozenset(flags)
        )
        told = load(parse_named("torch_eager")).build(asked, tmp_path).executed
        assert ("no bfloat16 instructions" in told["detail"]) is said
