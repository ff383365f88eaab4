"""The quantization table: the operation, ranges, observers, and that what is emitted is what was meant."""

from __future__ import annotations

import copy
import subprocess
import sys
import typing

import numpy as np
import onnxruntime as ort
import pytest
import torch
from benchmarks.zoo import built
from benchmarks.zoo.random_networks import random_case
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from karui.errors import KaruiError, Tampered, Unsupported, UsageError
from karui.graph.call import run_all, signature_of
from karui.graph.capture import capture
from karui.graph.fake_quant import fake_quant
from karui.graph.fold import fold_norms
from karui.graph.onnx import write
from karui.graph.program import bare, export, open_exported
from karui.graph.ranges import emit_onnx, profiles
from karui.graph.ranges.calibrate import calibrate
from karui.graph.ranges.observers import OBSERVERS, Histogram, least_squares, observer
from karui.graph.ranges.places import Profile, keys, rounded
from karui.graph.ranges.program import quantized
from karui.graph.ranges.sensitivity import sensitivity
from karui.graph.ranges.table import S7, S8, U8, Range, Table, load_table, save_table, signed
from karui.graph.trace import trace
from karui.numerics import Calibration, parse_numerics
from karui.runtimes import Source


def tensors(*values: float) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.gate
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-127, 127), (-7, 7), (-2, 1)])
def test_it_rounds_as_torch_does(low, high):
    x = torch.randn(1000) * 3
    scale, zero = tensors(2.0**-4), tensors(0.0 if low < 0 else 7.0)
    expected = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), low, high)
    assert torch.equal(fake_quant(x, scale, zero, low, high, -1), expected)
    weight, scales = torch.randn(5, 4), torch.full((5,), 2.0**-4)
    rows = torch.fake_quantize_per_channel_affine(weight, scales, torch.zeros(5, dtype=torch.int), 0, -7, 7)
    assert torch.equal(fake_quant(weight, scales, torch.zeros(5), -7, 7, 0), rows)


def test_the_operation_keeps_torchs_contract():
    x, scale = torch.randn(3, 4, requires_grad=True), torch.rand(4).add(0.1).requires_grad_()
    zero = torch.zeros(4, requires_grad=True)
    torch.library.opcheck(torch.ops.karui.fake_quant.default, (x, scale, zero, -7, 7, 1))


def test_gradients_go_straight_through_inside_and_step_sizes_learn():
    x = tensors(-100.0, 0.26, 0.9, 100.0).requires_grad_()
    scale, zero = tensors(0.5).requires_grad_(), tensors(0.0).requires_grad_()
    fake_quant(x, scale, zero, -4, 3, -1).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    inside = (1 - 0.26 / 0.5) + (2 - 0.9 / 0.5)  # LSQ: round(x/s) - x/s; beyond: the end of the grid
    assert scale.grad.item() == pytest.approx((inside - 4 + 3) / np.sqrt(4 * 4), abs=1e-5)
    assert zero.grad.item() == pytest.approx(-0.5 * 2 / np.sqrt(4 * 4), abs=1e-5)


def test_zero_is_always_on_the_grid():
    for low, high in ((0.5, 2.0), (-3.0, -1.0), (-1.0, 3.0), (0.0, 0.0)):
        scale, zero = Range(torch.tensor(low), torch.tensor(high)).on(U8)
        assert zero == zero.round() and 0 <= zero <= 255 and scale > 0
        assert (0 - zero) * scale <= min(low, 0.0) + scale and (255 - zero) * scale >= max(high, 0.0) - scale
    scale, zero = Range(torch.tensor(-1.0), torch.tensor(3.0)).on(S8)
    assert scale == torch.tensor(3.0 / 127) and zero == 0


def test_a_table_is_kept_and_a_torn_one_is_told(tmp_path):
    table = Table({
        "conv.weight": Range(-torch.rand(3), torch.rand(3), 0, 4, "weight", True),
        "block.0:add#1": Range(torch.tensor(-1.5), torch.tensor(2.5)),
    }, "mse")  # fmt: skip
    save_table(table, tmp_path)
    again = load_table(tmp_path)
    assert again.observer == "mse" and list(again) == list(table)
    for key, one in table.items():
        assert torch.equal(one.low, again[key].low) and torch.equal(one.high, again[key].high)
        assert (one.axis, one.bits, one.role, one.learned) == (
            again[key].axis, again[key].bits, again[key].role, again[key].learned,
        )  # fmt: skip
    (tmp_path / "ranges.safetensors").write_bytes(b"torn")
    with pytest.raises(KaruiError):
        load_table(tmp_path)
    (tmp_path / "ranges.json").write_text("{}")
    with pytest.raises(Tampered):
        load_table(tmp_path)
    with pytest.raises(UsageError, match="no quantization table"):
        load_table(tmp_path / "nowhere")


def test_every_calibration_has_its_observer():
    assert typing.get_args(Calibration) == tuple(OBSERVERS)


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_stream_is_seen_as_a_whole(name):
    torch.manual_seed(0)
    data = torch.randn(64, 1000)
    one, many = observer(name), observer(name)
    one.see(data)
    for part in data:
        many.see(part)
    (low, high), (low_2, high_2) = one.range(U8), many.range(U8)
    assert low < 0 < high
    loose = {"moving_average": 0.35, "entropy": 0.1}.get(name, 0.02)
    assert low_2 == pytest.approx(float(low), rel=loose) and high_2 == pytest.approx(float(high), rel=loose)


def test_a_histogram_loses_no_value_as_it_widens():
    seen = Histogram()
    for scale in (0.1, 1.0, 0.5, 40.0):
        seen.see(torch.randn(1000) * scale)
    assert seen.counts.sum() == 4000
    inside = seen.counts[seen.centres.abs() < 1].sum()
    assert 2000 < inside < 3200


def test_clipping_observers_clip_what_is_rare_and_keep_what_is_not():
    torch.manual_seed(0)
    spiked, even = torch.cat([torch.randn(100_000), tensors(100.0)]), torch.rand(100_000)
    for name, most in (("percentile", 10), ("mse", 95), ("entropy", 50)):
        rare, all_of_it = observer(name), observer(name)
        rare.see(spiked)
        all_of_it.see(even)
        assert rare.range(U8)[1] < most, name
        assert all_of_it.range(U8)[1] > 0.95, name

    def error(ends: tuple[torch.Tensor, torch.Tensor]) -> float:
        scale, zero = Range(*ends).on(U8)
        rounded = fake_quant(spiked, scale.reshape(1), zero.reshape(1), 0, 255, -1)
        return float(((rounded - spiked) ** 2).mean())

    ends = {name: observer(name) for name in ("mse", "minmax")}
    for one in ends.values():
        one.see(spiked)
    assert error(ends["mse"].range(U8)) < 0.95 * error(ends["minmax"].range(U8))


def test_least_squares_of_a_weight_is_no_worse_than_its_extremes():
    rows = torch.randn(8, 100)
    low, high = least_squares(rows, signed(4))
    assert torch.equal(low, -high) and bool((high <= rows.abs().amax(1) + 1e-6).all())

    def error(reach: torch.Tensor) -> torch.Tensor:
        return ((fake_quant(rows, reach / 7, torch.zeros(8), -7, 7, 0) - rows) ** 2).sum(1)

    assert bool((error(high) <= error(rows.abs().amax(1)) + 1e-6).all())
    assert error(high).sum() < 0.9 * error(rows.abs().amax(1)).sum()


class Net(nn.Module):
    """Convolutions with norms, a residual sum, a pool, a linear layer over sequences and one over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.pool = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.norm(self.stem(x)))
        seen = self.pool(torch.relu(seen + self.inner(seen)))
        seen = torch.nn.functional.gelu(self.mix(seen.flatten(2).transpose(1, 2)))
        return self.head(seen.mean(1))


def source_of(model: nn.Module, x: torch.Tensor, folder, text: str = "int8") -> Source:
    signature, arrays = signature_of(model, x, 1)
    signature = capture(copy.deepcopy(model).eval(), signature, arrays, folder)
    return Source(folder, signature, parse_numerics(text), arrays, arrays)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    torch.manual_seed(0)
    model, x = Net(), torch.randn(64, 3, 8, 8)
    model(x), model.eval()
    return model, source_of(model, x, tmp_path_factory.mktemp("net"))


def test_folding_norms_changes_nothing_but_the_operations(net):
    model, source = net
    graph = bare(open_exported(source.folder / "model.pt2").module())
    factors = fold_norms(graph)
    assert list(factors) == ["model.stem.weight"]
    assert not [node for node in graph.graph.nodes if "batch_norm" in str(node.target)]
    x = torch.from_numpy(next(iter(source.probe.values())))
    expected = run_all(model, source.signature.style, dict(source.probe))[0]
    with torch.no_grad():
        found = graph(x)
    assert torch.allclose(
        found[0] if isinstance(found, tuple) else found, torch.from_numpy(expected), atol=1e-5
    )


def test_tensors_are_named_by_module_and_operation(net):
    graph = bare(open_exported(net[1].folder / "model.pt2").module())
    names = set(keys(graph).values())
    assert {
        "input:tensors_0",
        "stem:conv2d",
        "inner:conv2d",
        ":add",
        ":relu",
        ":relu#1",
        "mix:linear",
    } <= names


class Residual(nn.Module):
    """A sum that only a norm reads, over sequences whose axes are moved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.norm(x + self.first(x.transpose(0, 1)).transpose(0, 1))
        return self.head(seen)


def places_by_key(
    model: nn.Module, x: torch.Tensor, profile: Profile, numerics: str = "int8"
) -> dict[str, str]:
    signature, arrays = signature_of(model, x, 2)
    graph = trace(model.eval(), signature, arrays).graph
    fold_norms(graph)
    names, asked = keys(graph), parse_numerics(numerics)
    return {names[node]: names[source] for node, source in rounded(graph, profile, asked).items()}


def test_a_runtime_that_moves_integers_itself_gets_one_pair_for_each_tensor():
    x = torch.randn(4, 3, 8, 8)
    every = places_by_key(Net(), x, profiles.onnxruntime(saturates=False))
    few = places_by_key(Net(), x, profiles.openvino(saturates=False))
    assert every["pool:max_pool2d"] == every[":transpose"] == ":relu#1"
    assert few == {key: source for key, source in every.items() if key == source}
    assert ":relu#1" in few  # the sum that layers read is on a grid in both


class Rows(nn.Module):
    """(n, 6) -> (n, 3); a linear layer on a matrix before the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x + self.first(x)))


def test_a_sum_that_no_layer_reads_stays_in_float():
    x = torch.randn(4, 5, 6)
    every = places_by_key(Residual(), x, profiles.onnxruntime(saturates=False))
    few = places_by_key(Residual(), x, profiles.openvino(saturates=False))
    assert set(every) == {"input:tensors_0", ":transpose", "norm:layer_norm"}
    assert set(few) == {"input:tensors_0", "norm:layer_norm"}


def test_what_a_gemm_gives_to_such_a_sum_is_on_a_grid_in_onnx_runtime():
    found = {
        name: set(places_by_key(Rows(), torch.randn(4, 6), make(saturates=False)))
        for name, make in (("ort", profiles.onnxruntime), ("ov", profiles.openvino))
    }
    assert found["ov"] == {"input:tensors_0", "norm:layer_norm"}
    assert found["ort"] == found["ov"] | {"first:linear"}


def test_a_sum_of_what_layers_in_float_give_stays_in_float():
    x, profile = torch.randn(4, 3, 8, 8), profiles.openvino(saturates=False)
    assert {"inner:conv2d", ":relu"} <= set(places_by_key(Net(), x, profile))
    some = places_by_key(Net(), x, profile, "int8[inner=fp32,mix=fp32]")
    assert ":relu" in some and not {"inner:conv2d", ":relu#1"}.intersection(some)


def test_a_layers_own_result_is_heard_where_it_is_rounded_too(tmp_path):
    """One channel of the first layer's result is ten thousand times as large as what decides."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        model[0].weight[0] *= 1e4
        model[0].bias[0] *= 1e4
        model[2].weight[:, 0] *= 1e-4
    x = torch.randn(64, 3, 8, 8)
    graph = bare(open_exported(source_of(model, x, tmp_path).folder / "model.pt2").module())
    table = calibrate(graph, [(x,)])
    heard = {
        name: sensitivity(graph, table, profile, (x[:16],))["0"]
        for name, profile in (("result", profiles.openvino(saturates=False)), ("input", Profile()))
    }
    assert heard["result"] < 25 < heard["input"]


def test_the_table_covers_weights_and_activations_and_is_found_once(net, monkeypatch):
    source = net[1]
    found = quantized(source, profiles.onnxruntime(saturates=False), "minmax")
    weights = {key for key, one in found.table.items() if one.role == "weight"}
    assert weights == {"stem.weight", "inner.weight", "mix.weight", "head.weight"}
    assert found.table["stem.weight"].low.shape == (8,) and found.table["stem.weight"].axis == 0
    assert {"input:tensors_0", ":relu", ":add"} & set(found.table) == {"input:tensors_0", ":relu"}
    assert found.macs == {"stem": 8 * 27 * 64, "inner": 8 * 72 * 64, "mix": 64 * 16, "head": 40}
    monkeypatch.setattr("karui.graph.ranges.program.calibrate", None)
    again = quantized(source, profiles.openvino(saturates=False), "minmax")
    assert torch.equal(again.table[":relu"].high, found.table[":relu"].high)


def test_a_range_that_a_step_has_learned_is_kept_to(net, tmp_path):
    model, source = net
    for name in ("model.pt2",):
        (tmp_path / name).write_bytes((source.folder / name).read_bytes())
    weight = model.stem.weight.detach()
    reach = weight.abs().flatten(1).amax(1) * 0.5
    save_table(
        Table({
            "stem.weight": Range(-reach, reach, 0, 4, "weight", True),
            ":relu#1": Range(torch.tensor(0.0), torch.tensor(1.0), learned=True),
        }),
        tmp_path,
    )  # fmt: skip
    mine = Source(tmp_path, source.signature, source.numerics, source.calibrate, source.probe)
    found = quantized(mine, profiles.onnxruntime(saturates=True), "minmax")
    factor = model.norm.weight.detach() * (model.norm.running_var + model.norm.eps).rsqrt()
    assert torch.allclose(found.table["stem.weight"].high, reach * factor.abs())
    assert float(found.table[":relu#1"].high) == 1.0
    rounded = next(
        node for node in found.graph.graph.nodes if "fake_quant" in str(node.target) and node.args[5] == 0
    )
    assert rounded.args[3:5] == (-7, 7)


def test_a_weight_of_more_bits_than_the_kernels_take_is_refused(net, tmp_path):
    source = net[1]
    (tmp_path / "model.pt2").write_bytes((source.folder / "model.pt2").read_bytes())
    save_table(Table({"head.weight": Range(-torch.ones(5), torch.ones(5), 0, 8, "weight", True)}), tmp_path)
    mine = Source(tmp_path, source.signature, source.numerics, source.calibrate, source.probe)
    assert quantized(mine, profiles.onnxruntime(saturates=False), "minmax").reference
    with pytest.raises(Unsupported, match="head.weight was rounded to 8 bits"):
        quantized(mine, profiles.onnxruntime(saturates=True), "minmax")


def test_calibration_that_never_ran_is_an_error(net):
    graph = bare(open_exported(net[1].folder / "model.pt2").module())
    with pytest.raises(Unsupported, match="no calibration data"):
        calibrate(graph, [])
    with pytest.raises(Unsupported, match="not finite"):
        calibrate(graph, [(torch.full((2, 3, 8, 8), torch.inf),)])


def session(path, level: str = "ORT_ENABLE_ALL") -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def emitted(source: Source, profile, path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The fake-quant reference, and ONNX Runtime's literal answers."""
    found = quantized(source, profile, "minmax")
    program = export(found.graph, source.signature, source.calibrate)
    write(emit_onnx.emit(program, source.signature, 20, profile), path)
    run = session(path, "ORT_DISABLE_ALL")
    names = [one.name for one in run.get_inputs()]
    return found.reference, run.run(None, dict(zip(names, source.probe.values(), strict=True)))


@pytest.mark.gate
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(st.integers(0, 10_000))
def test_what_is_emitted_is_what_was_meant_on_random_networks(tmp_path_factory, seed):
    case = random_case(seed)
    model, inputs = built(case, seed).eval(), case.inputs(32)
    folder = tmp_path_factory.mktemp("random")
    source = source_of(model, inputs if len(inputs) > 1 else inputs[0], folder)
    reference, answers = emitted(source, profiles.onnxruntime(saturates=True), folder / "model.onnx")
    for mine, theirs in zip(reference, answers, strict=True):
        reach = np.abs(mine).max() + 1e-9
        assert np.abs(mine - theirs).mean() <= 2e-3 * reach  # a value at a half may round either way
        assert np.abs(mine - theirs).max() <= 0.05 * reach


def test_a_quantized_file_stores_integers_only(net, tmp_path):
    import onnx

    emitted(net[1], profiles.onnxruntime(saturates=True), tmp_path / "model.onnx")
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[f"{name}.weight_quantized"] for name in ("stem", "inner", "head")} == {
        onnx.TensorProto.INT8
    }
    assert "mix.weight_quantized_transposed" in kinds  # no Transpose stands behind the integers
    assert kinds["head.bias_quantized"] == onnx.TensorProto.INT32
    assert not [name for name in kinds if name.endswith(".weight")]
    integers = onnx.numpy_helper.to_array(
        next(tensor for tensor in graph.initializer if tensor.name == "stem.weight_quantized")
    )
    assert np.abs(integers).max() == S7.high


@pytest.mark.gate
def test_tensorrts_form_is_symmetric_with_float_biases(net, tmp_path):
    """Its rules, checked on the file: int8, zero points of zero, no bias behind a DequantizeLinear."""
    import onnx

    reference, answers = emitted(net[1], profiles.tensorrt(), tmp_path / "model.onnx")
    np.testing.assert_allclose(answers[0], reference[0], atol=0.02 * np.abs(reference[0]).max())
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rounding = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(rounding) > 6
    for node in rounding:
        assert stored[node.input[2]].dtype == np.int8 and not stored[node.input[2]].any()
    pairs = {node.output[0]: node for node in rounding}
    biased = [node for node in graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) > 2]
    assert biased and not [node for node in biased if node.input[2] in pairs]


MEMORY = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from torch import nn
from karui.graph.call import signature_of, tensors_of
from karui.graph.capture import capture
from karui.graph.onnx import batches
from karui.graph.program import bare, open_exported
from karui.graph.ranges.calibrate import ROWS, calibrate
from pathlib import Path
folder, rows, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
data = np.load(folder / "images.npy", mmap_mode="r")[:rows]
model = nn.Sequential(nn.Conv2d(3, 8, 7, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU()).eval()
signature, _ = signature_of(model, torch.zeros(2, 3, 224, 224), 1)
capture(model, signature, {signature.inputs[0].name: np.zeros((2, 3, 224, 224), "float32")}, folder)
graph = bare(open_exported(folder / "model.pt2").module())
parts = batches({signature.inputs[0].name: data}, signature, ROWS)
with torch.no_grad():
    assert len(calibrate(graph, (tuple(tensors_of(part).values()) for part in parts), name)) == 5
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.gate
def test_memory_of_calibration_does_not_grow_with_the_data(tmp_path):
    """512 images of 224 pixels are 308 MB; what is held is one batch and its activations."""
    kept = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", "float32", (512, 3, 224, 224))
    kept[:] = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    kept.flush()
    peak = {}
    for name, rows in (("minmax", 16), ("entropy", 512)):
        command = [sys.executable, "-c", MEMORY, str(tmp_path), str(rows), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peak[name] = int(done.stdout.split()[-1])
    mapped = 308  # pages of the file that the system counts to the process while it may keep them
    assert peak["entropy"] - peak["minmax"] < mapped + 60
