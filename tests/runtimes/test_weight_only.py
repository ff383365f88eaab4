"""Weights in 8 and 4 bits with float arithmetic: what files hold, what they answer, how small they are."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import numpy_helper
from tests.runtimes.onnx_nets import far
from torch import nn

from karui import presets
from karui.budget import Budget
from karui.errors import Unsupported, UsageError
from karui.graph.call import run_all, signature_of
from karui.graph.capture import capture
from karui.graph.ranges.table import save_table
from karui.graph.weights.groups import grids, settled
from karui.graph.weights.options import Packing
from karui.numerics import parse_numerics
from karui.recipe import parse_named
from karui.runtimes import Ask, Source, load
from karui.techniques import Given
from karui.techniques.round_weights import RoundWeights

ROWS = 64
ROUNDED = {"int4_weights": ":rounding=nearest", "int8_weights": ""}  # to nearest, both
FILES = {"onnxruntime": "model.onnx", "openvino": "model.bin"}


class Linears(nn.Module):
    """An embedding, large layers, and one whose 200 inputs are no multiple of a group. (n, 6) -> (n, 5)"""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.wide = nn.Embedding(300, 128), nn.Linear(128, 512)
        self.narrow, self.odd, self.head = (
            nn.Linear(512, 200, bias=False),
            nn.Linear(200, 128),
            nn.Linear(128, 5),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.wide(self.words(tokens)))
        return self.head(torch.relu(self.odd(torch.relu(self.narrow(seen)).mean(1))))


class Mixed(nn.Module):
    """A convolution, a recurrence and a bare parameter, which stay in float. (n, 1, 8, 8) -> (n, 4)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn = nn.Conv2d(1, 4, 3, padding=1), nn.GRU(32, 32, batch_first=True)
        self.place, self.head = nn.Parameter(torch.randn(32, 32)), nn.Linear(32, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.conv(image)).transpose(1, 2).flatten(2)
        return self.head(self.rnn(seen)[0][:, -1] @ self.place)


@dataclasses.dataclass(frozen=True)
class Net:
    model: nn.Module
    source: Source
    answers: np.ndarray


def net_of(model: nn.Module, rows: torch.Tensor, folder: Path) -> Net:
    signature, arrays = signature_of(model.eval(), rows, 1)
    answers = run_all(model, signature.style, arrays)[0]
    signature = capture(copy.deepcopy(model), signature, arrays, folder)
    return Net(model, Source(folder, signature, parse_numerics("fp32"), arrays, arrays), answers)


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> dict[str, Net]:
    torch.manual_seed(0)
    words = torch.randint(0, 300, (ROWS, 6))
    return {
        "linears": net_of(Linears(), words, tmp_path_factory.mktemp("linears")),
        "mixed": net_of(Mixed(), torch.randn(ROWS, 1, 8, 8), tmp_path_factory.mktemp("mixed")),
    }


@pytest.fixture(scope="module")
def made(nets, tmp_path_factory):
    """``made(recipe, net)``: the artifact's folder and what was told of it, built once."""
    known: dict[tuple[str, str], tuple] = {}

    def get(recipe: str, net: str = "linears"):
        if (recipe, net) not in known:
            numerics, _, runtime = recipe.partition("@")
            folder = tmp_path_factory.mktemp("artifact")
            asked = dataclasses.replace(nets[net].source, numerics=parse_numerics(numerics))
            known[recipe, net] = folder, load(parse_named(runtime)).build(asked, folder)
        return known[recipe, net]

    return get


def answered(recipe: str, folder: Path, source: Source, rows: int = ROWS) -> np.ndarray:
    given = {name: array[:rows] for name, array in source.probe.items()}
    return load(parse_named(recipe.partition("@")[2])).load(folder, source.signature, 1)(given)[0]


def from_file(path: Path) -> dict[str, np.ndarray]:
    """The float weights that a file's whole numbers stand for, by the operators' documentation."""
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layer_of = {name: node.name.partition("/")[0] for node in graph.node for name in node.input}
    found = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            options = {one.name: one.i for one in node.attribute}
            found[node.name.partition("/")[0]] = unpacked(options, *(stored[name] for name in node.input[1:]))
        elif node.op_type == "Gather" and node.input[0].endswith("_rows"):
            path = node.input[0].removesuffix("_rows")
            rows = stored[node.input[0]].astype(np.float32) * stored[f"{path}_row_scale"]
            found[path.removesuffix(".weight")] = rows
        elif node.op_type == "DequantizeLinear":
            block = next(one.i for one in node.attribute if one.name == "block_size")
            whole, scale, zero = (stored[name].astype(np.float32) for name in node.input)
            wide = [np.repeat(part, block, 0)[: len(whole)] for part in (scale, zero)]
            found[layer_of[node.output[0]]] = ((whole - wide[1]) * wide[0]).T
    return found


def unpacked(options: dict[str, int], whole: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None):
    rows, columns, bits, block = (options[name] for name in ("N", "K", "bits", "block_size"))
    groups = -(-columns // block)

    def numbers(stored: np.ndarray) -> np.ndarray:
        if bits == 4:
            stored = np.stack([stored & 15, stored >> 4], -1).reshape(*stored.shape[:-1], -1)
        return stored.astype(np.float32)

    given = 2 ** (bits - 1) if zero is None else numbers(zero.reshape(rows, -1))[:, :groups, None]
    floats = (numbers(whole.reshape(rows, groups, -1)) - given) * scale.reshape(rows, groups, 1)
    return floats.reshape(rows, -1)[:, :columns].astype(np.float32)


def eager_with(model: nn.Module, weights: dict[str, np.ndarray], source: Source) -> np.ndarray:
    twin = copy.deepcopy(model)
    for path, weight in weights.items():
        twin.get_submodule(path).weight.data = torch.tensor(weight)
    return run_all(twin, source.signature.style, dict(source.probe))[0]


EXACT = (
    "int4_weights@onnxruntime",
    "int8_weights@onnxruntime:symmetric=true",
    "int4_weights@onnxruntime:group=16,symmetric=true,calibration=mse,rounding=nearest",
    "int4_weights@onnxruntime:form=dequantize,opset=21",
    "int8_weights@onnxruntime:form=dequantize,opset=21,group=128",
)


@pytest.mark.gate
@pytest.mark.parametrize("recipe", EXACT)
def test_a_file_answers_as_eager_with_the_weights_that_it_holds(nets, made, recipe):
    net, (folder, built) = nets["linears"], made(recipe)
    weights = from_file(folder / "model.onnx")
    assert set(weights) == {"words", "wide", "narrow", "odd", "head"}
    wanted = eager_with(net.model, weights, net.source)
    for rows in (1, 7, ROWS):
        assert far(answered(recipe, folder, net.source, rows), wanted[:rows]) <= 1e-4
    assert far(built.reference[0], wanted) <= 1e-4
    assert far(wanted, net.answers) > 1e-4  # there is something to tell apart


@pytest.mark.gate
@pytest.mark.parametrize("precision", ROUNDED)
def test_openvino_answers_as_the_same_weights_in_float(nets, made, precision):
    """Its numbers are those of the ONNX file, which the test before has read."""
    source, recipe = nets["linears"].source, f"{precision}@openvino{ROUNDED[precision]}"
    folder, built = made(recipe)
    same = from_file(made(f"{precision}@onnxruntime{ROUNDED[precision]}")[0] / "model.onnx")
    wanted = eager_with(nets["linears"].model, same, source)
    for rows in (1, 7, ROWS):
        assert far(answered(recipe, folder, source, rows), wanted[:rows]) <= 1e-4
    assert built.executed["weight_kernels"] == 4 and "look-ups in 8 bits x1" in built.executed["detail"]
    assert [one["node"] for one in built.executed["fallback"]] == [
        "odd"
    ]  # its inputs do not fill whole groups


@pytest.mark.gate
@pytest.mark.parametrize("runtime", FILES)
def test_a_file_is_about_a_quarter_and_a_seventh_of_fp32(made, runtime):
    """With scales, zero points, a layer that is filled up to whole groups, and an embedding of 8 bits."""
    sizes = {
        precision: (made(f"{precision}@{runtime}{ROUNDED.get(precision, '')}")[0] / FILES[runtime])
        .stat()
        .st_size
        for precision in ("fp32", "int8_weights", "int4_weights")
    }
    assert sizes["int8_weights"] <= 0.28 * sizes["fp32"]
    table, rest = 300 * 128, 128 * 512 + 512 * 200 + 200 * 128 + 128 * 5
    expected = (0.26 * table + 0.15 * rest) / (table + rest)
    assert sizes["int4_weights"] <= (expected + 0.015) * sizes["fp32"]


@pytest.mark.gate
def test_the_plain_runtimes_open_the_files(nets, made):
    source = nets["linears"].source
    (given,) = source.probe.values()
    for recipe in ("int4_weights@onnxruntime", "int8_weights@onnxruntime"):
        folder, built = made(recipe)
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        assert far(session.run(None, {session.get_inputs()[0].name: given})[0], built.reference[0]) <= 1e-4
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    for recipe in ("int4_weights@openvino:rounding=nearest", "int8_weights@openvino"):
        folder, built = made(recipe)
        model = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
        assert far(model([given])[0], built.reference[0]) <= 1e-4


def test_activations_in_8_bits_differ_by_two_hundredths_at_most(nets, made):
    recipe = "int4_weights@onnxruntime:accuracy_level=4"
    folder, built = made(recipe)
    found = answered(recipe, folder, nets["linears"].source)
    assert 1e-5 < far(found, built.reference[0]) <= 0.02
    assert "MatMulNBits x4 (4 bits, activations in 8 bits)" in built.executed["detail"]


def test_openvino_says_when_it_would_round_no_activations(nets, made):
    with pytest.raises(Unsupported, match="would round no activations"):
        made("int4_weights@openvino:accuracy_level=4", "mixed")


def test_what_is_stored_is_counted_and_the_rest_has_a_reason(made):
    told = made("int4_weights@onnxruntime")[1].executed
    assert told["precision"] == "int4_weights" and told["weight_kernels"] == 5 and told["fallback"] == []
    assert told["weights"] == pytest.approx({"4": 0.8349, "8": 0.1651}, abs=1e-3)
    assert told["groups"] == [64] and told["rounding"] == {"nearest": 1, "gptq": 4}
    assert "weights: 83.5% in 4 bits, 16.5% in 8 bits, rounded by nearest and gptq" in told["detail"]
    told = made("int4_weights@onnxruntime", "mixed")[1].executed
    reasons = {one["node"]: one["reason"] for one in told["fallback"]}
    assert reasons["conv"].startswith("a convolution") and reasons["rnn.weight_ih_l0"].startswith(
        "a recurrent"
    )
    assert "matmul" in reasons["place"] and told["weights"]["4"] < 0.05


def test_rules_choose_a_width_for_each_layer(nets, made):
    recipe = "int4_weights[words=fp32,narrow=int8_weights,head=fp32]@onnxruntime:rounding=nearest"
    folder, built = made(recipe)
    graph = onnx.load(folder / "model.onnx").graph
    products = {node.name.partition("/")[0]: node for node in graph.node if node.op_type == "MatMulNBits"}
    bits = {
        name: next(one.i for one in node.attribute if one.name == "bits") for name, node in products.items()
    }
    assert bits == {"wide": 4, "narrow": 8, "odd": 4}
    assert [one["node"] for one in built.executed["fallback"]] == ["words", "head"]
    assert {one["reason"] for one in built.executed["fallback"]} == {"kept in FP32 by a rule"}
    assert far(answered(recipe, folder, nets["linears"].source), built.reference[0]) <= 1e-4
    for numerics, match in (
        ("int4_weights[tail=fp32]", "no layer fits"),
        ("int4_weights[*=fp32]", "no weight"),
    ):
        with pytest.raises(Unsupported, match=match):
            made(f"{numerics}@onnxruntime")


def test_gptq_loses_less_than_rounding_to_nearest(nets, made):
    wanted = nets["linears"].answers
    by = {
        how: made(f"int4_weights@onnxruntime:rounding={how}")[1].reference[0] for how in ("gptq", "nearest")
    }
    lost = {how: float(np.square(found - wanted).sum()) for how, found in by.items()}
    assert lost["gptq"] < 0.5 * lost["nearest"]


def test_clip_ends_at_the_least_squared_error_lose_less_than_extremes():
    torch.manual_seed(0)
    weight = torch.randn(32, 256) ** 3
    for symmetric in (False, True):
        error = {
            ends: float((one.round(weight, "w").floats() - weight).square().sum())
            for ends in ("minmax", "mse")
            for one in [grids(weight, 4, 64, Packing(64, symmetric, ends))]
        }
        assert error["mse"] < 0.98 * error["minmax"]


def test_weights_that_a_step_has_rounded_are_stored_as_they_are(tmp_path):
    torch.manual_seed(0)
    model, rows = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 4)).eval(), torch.randn(ROWS, 32)
    signature, arrays = signature_of(model, rows, 1)
    given = Given(arrays, arrays, signature)
    steps = RoundWeights(method="gptq", bits=4).apply(copy.deepcopy(model), given)
    rounded = net_of(steps.model, rows, tmp_path)
    save_table(steps.ranges, tmp_path)
    folder = tmp_path / "artifact"
    folder.mkdir()
    asked = dataclasses.replace(rounded.source, numerics=parse_numerics("int4_weights"))
    built = load(parse_named("onnxruntime")).build(asked, folder)
    weights = from_file(folder / "model.onnx")
    assert set(weights) == {"0", "2"} and built.executed["rounding"] == {"an earlier step": 2}
    for path, stored in weights.items():
        wanted = rounded.model.get_submodule(path).weight.detach().numpy()
        np.testing.assert_allclose(stored, wanted, atol=1e-6)
    save_table(RoundWeights(method="nearest", bits=8).apply(copy.deepcopy(model), given).ranges, tmp_path)
    with pytest.raises(Unsupported, match="was rounded to 8 bits"):
        load(parse_named("onnxruntime")).build(asked, folder)


def test_a_settled_grid_is_that_of_the_row():
    from karui.graph.ranges.table import Range

    weight = torch.tensor([[7.0, -3.0, 0.0, 1.0], [0.5, 0.25, -3.5, 0.0]])
    one = Range(torch.tensor([-7.0, -3.5]), torch.tensor([7.0, 3.5]), 0, 4, "weight", learned=True)
    found = settled(weight, one, 4, 16).round(weight, "w")
    assert found.whole.tolist() == [[15, 5, 8, 9], [9, 8, 1, 8]] and found.symmetric


def asked(recipe: str, **facts) -> str | None:
    numerics, _, runtime = recipe.partition("@")
    ask = Ask(parse_numerics(numerics), **({"layers": {"Linear": 1}} | facts))
    return load(parse_named(runtime)).refuses(ask)


@pytest.mark.parametrize("runtime", FILES)
def test_what_is_refused_before_it_costs_a_trial(runtime):
    assert (
        asked(f"int4_weights@{runtime}") is None
        and asked(f"int8_weights@{runtime}", calibrated=False) is None
    )
    assert asked(f"int4_weights@{runtime}", layers={"Embedding": 1}) is None
    assert "calibration data" in asked(f"int4_weights@{runtime}:rounding=gptq", calibrated=False)
    assert "ONNX" in asked(f"int8_weights@{runtime}", form="onnx")
    assert "no Linear" in asked(f"int8_weights@{runtime}", layers={"Conv2d": 3})
    assert "minmax or mse" in asked(f"int4_weights@{runtime}:calibration=entropy")
    assert "not bf16" in asked(f"int4_weights[a=bf16]@{runtime}")
    with pytest.raises(UsageError, match="group cannot be 48"):
        asked(f"int4_weights@{runtime}:group=48")


def test_forms_that_do_not_go_together_are_refused():
    assert "opset=21" in asked("int4_weights@onnxruntime:form=dequantize")
    assert "form=nbits" in asked("int4_weights@onnxruntime:form=dequantize,opset=21,accuracy_level=4")
    assert "int8_weights" in asked("int8@onnxruntime:form=dequantize,opset=21")
    assert "quantizer=karui" in asked("int8_weights@openvino:quantizer=nncf")


def test_a_cpu_is_offered_them_and_more_forms_where_bytes_count():
    plain, small = (
        {str(recipe) for recipe in presets.recipes("cpu", Budget(objective=objective))}
        for objective in ("latency", "size")
    )
    assert "int4_weights@onnxruntime:accuracy_level=4" in plain
    assert {"int4_weights@openvino", "int8_weights@onnxruntime:form=dequantize,opset=21"} <= small - plain
