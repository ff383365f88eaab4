"""The quantized program that both Inductor runtimes build from; nothing is compiled here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.runtimes.torch_source import INT8_CPU, Faulty, answers_of, cosine, images, source_of
from torch import nn

from karui.errors import Unsupported
from karui.graph import inductor, inductor_int8
from karui.graph.program import bare, open_exported, predictor, save_exported
from karui.numerics import Numerics, parse_numerics
from karui.runtimes import Ask

pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    model = Faulty().eval()
    return model, source_of(model, images(), tmp_path_factory.mktemp("source"))


def quantized(source, text: str) -> inductor_int8.Quantized:
    program = open_exported(source.folder / "model.pt2")
    return inductor_int8.quantize(
        program, source.signature, parse_numerics(text), source.calibrate, source.probe
    )


@pytest.fixture(scope="module")
def static(source):
    return quantized(source[1], "int8")


def targets(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_it_is_close_to_the_original(source, static):
    model, given = source
    assert static.reference[0].shape == (64, 4)
    assert cosine(static.reference[0], answers_of(model, given)) > 0.999
    assert not np.array_equal(static.reference[0], answers_of(model, given))


def test_the_reference_is_the_program_itself(source, static):
    predict = predictor(bare(static.program.module()), source[1].signature)
    np.testing.assert_allclose(predict(source[1].probe)[0], static.reference[0], atol=1e-6)
    few = {name: array[:3] for name, array in source[1].probe.items()}
    np.testing.assert_allclose(predict(few)[0], static.reference[0][:3], atol=1e-6)


def test_a_convolution_over_one_channel_stays_in_float(static):
    assert static.in_float == ("conv",)
    weights = {name: tensor.dtype for name, tensor in static.program.state_dict.items()}
    assert weights["model.conv.weight"] == torch.float32
    assert sum(dtype == torch.int8 for dtype in weights.values()) == 2


def test_a_layer_plus_a_weight_is_written_as_a_difference(static):
    assert "aten.add.Tensor" not in targets(static.program)
    assert targets(static.program).count("aten.sub.Tensor") == 1


def test_the_difference_is_the_same_number_bit_for_bit(source):
    program = open_exported(source[1].folder / "model.pt2")
    module = bare(program.module())
    before = predictor(bare(program.module()), source[1].signature)(source[1].probe)[0]
    inductor_int8.split_sums(module)
    np.testing.assert_array_equal(predictor(module, source[1].signature)(source[1].probe)[0], before)


class Sums(nn.Module):
    """Sums that must be rewritten (with weights, inputs, values made of them) and one that need not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.place = nn.Linear(8, 8), nn.Linear(8, 8), nn.Parameter(torch.randn(1, 8))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        first = values.clone() + self.one(values)
        second = self.two(first) + torch.relu(self.place)
        return first + second


def test_every_sum_with_something_no_layer_made_is_rewritten(tmp_path):
    given = source_of(Sums().eval(), np.ones((64, 8), np.float32), tmp_path)
    module = bare(open_exported(given.folder / "model.pt2").module())
    inductor_int8.split_sums(module)
    found = [str(node.target) for node in module.graph.nodes]
    assert found.count("aten.sub.Tensor") == 2
    assert found.count("aten.add.Tensor") == 1


def test_float_weights_samples_and_paths_do_not_reach_the_file(source, static, tmp_path):
    before = source[1].folder / "model.pt2"
    save_exported(quantized(source[1], "int8").program, tmp_path / "quantized.pt2")
    held = (tmp_path / "quantized.pt2").read_bytes()
    assert len(held) < before.stat().st_size
    assert b"torch_source.py" not in held
    assert images()[:16].tobytes()[:256] not in held
    assert "model.inner.weight" not in static.program.state_dict


def test_a_rule_keeps_a_module_in_float(source):
    found = quantized(source[1], "int8[head=fp32]")
    assert found.in_float == ("conv", "head")
    assert found.program.state_dict["model.head.weight"].dtype == torch.float32


def test_a_rule_that_fits_no_layer_is_refused(source):
    with pytest.raises(Unsupported, match="tail"):
        quantized(source[1], "int8[tail=fp32]")


def test_dynamic_ranges_are_close_too_and_weights_are_int8(source):
    model, given = source
    found = quantized(given, "int8_dynamic")
    assert cosine(found.reference[0], answers_of(model, given)) > 0.999
    assert sum(tensor.dtype == torch.int8 for tensor in found.program.state_dict.values()) == 2
    assert any("choose_qparams" in target for target in targets(found.program))


def asked(precision: str, quantizer: str = "karui", **facts) -> str | None:
    known = {"flags": INT8_CPU, "layers": {"Linear": 1}} | facts
    return inductor.refuses(Ask(parse_numerics(precision), **known), quantizer)


def test_what_is_refused_before_it_costs_a_trial(monkeypatch):
    assert [asked(p) for p in ("fp32", "bf16", "fp16", "int8", "int8_dynamic", "int8[a=fp32]")] == [None] * 6
    assert asked("int8", flags=("avx2",)) is None
    assert "VNNI" in asked("int8", "torchao", flags=("avx2",))
    assert "VNNI" in asked("int8_dynamic", flags=("avx2",))
    assert "calibration" in asked("int8", calibrated=False)
    assert asked("int8_dynamic", calibrated=False) is None
    assert "no linear layer" in asked("int8_dynamic", layers={"Conv2d": 2})
    assert "recurrent" in asked("fp16", layers={"LSTM": 1})
    assert "ONNX" in asked("fp32", form="onnx")
    assert "bf16" in asked("int8[a=bf16]")
    assert "rules" in asked("fp32[a=bf16]")
    assert "ranges" in inductor.refuses(Ask(Numerics("fp32", (), {"ranges": {}})), "karui")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "compiler" in asked("fp32")
    monkeypatch.setattr(inductor, "find_spec", lambda name: None)
    monkeypatch.delenv("CXX")
    assert "karui[torchao]" in asked("int8")
