from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.docs import pages
from tests.runtimes.torch_source import Recurrent, answers_of, cosine, residual, rows_of, source_of
from torch import nn

from karui.errors import BuildFailed, Unsupported
from karui.numerics import parse_numerics
from karui.recipe import parse_named
from karui.runtimes import Ask, Built, Source, load

pytest.importorskip("executorch")
executorch = load(parse_named("executorch"))
ROWS = 100


class Attention(nn.Module):
    """(n, 6, 8) -> (n, 3); what the layers read is read by norms outside of the delegate too"""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(words).mean(1))


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, *shape), dtype=np.float32)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> tuple[nn.Module, Source]:
    model = residual(rows(1, 8, 8))
    return model, source_of(model, rows(1, 8, 8), tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(net, tmp_path_factory):
    """``made(numerics, quantizer)``: the artifact's folder and what was told of it, built once."""
    known: dict[tuple[str, str], tuple[Path, Built]] = {}

    def get(numerics: str, quantizer: str = "karui") -> tuple[Path, Built]:
        if (numerics, quantizer) not in known:
            folder = tmp_path_factory.mktemp("artifact")
            known[numerics, quantizer] = folder, build(net[1], numerics, folder, quantizer)
        return known[numerics, quantizer]

    return get


def build(source: Source, numerics: str, folder: Path, quantizer: str = "karui") -> Built:
    asked = dataclasses.replace(source, numerics=parse_numerics(numerics))
    return load(parse_named(f"executorch:quantizer={quantizer}")).build(asked, folder)


def answered(folder: Path, source: Source, count: int = ROWS) -> np.ndarray:
    return executorch.load(folder, source.signature, 1)(rows_of(source, count))[0]


@pytest.mark.gate
def test_fp32_differs_from_eager_by_less_than_a_ten_thousandth(net, made):
    model, source = net
    folder, built = made("fp32")
    assert sorted(file.name for file in folder.iterdir()) == ["model.pte"]
    wanted = answers_of(model, source)
    for count in (1, 15, 16, 17, ROWS):
        found = answered(folder, source, count)
        assert np.abs(found - wanted[:count]).max() <= 1e-4 * np.abs(wanted).max()
    assert built.executed["float_kernels"] == 4 and built.executed["int8_kernels"] == 0
    assert built.executed["delegated"]["convolution"] == 3
    assert [entry["op"] for entry in built.executed["fallback"]] == ["view_copy"]


@pytest.mark.gate
def test_int8_is_what_the_table_meant_and_all_of_it_is_delegated(net, made):
    source = net[1]
    folder, built = made("int8")
    assert built.executed["int8_macs"] >= 0.95 and built.executed["int8_kernels"] == 4
    assert {layer["layer"]: layer["int8"] for layer in built.executed["layers"]} == dict.fromkeys(
        ("stem", "inner", "deep", "head"), True
    )
    found, reference = answered(folder, source), built.reference[0]
    step = (reference.max() - reference.min()) / 255
    assert np.abs(found - reference).max() <= 1.01 * step  # a value at a half may round either way
    assert (np.abs(found - reference) < 1e-5).mean() > 0.9
    assert cosine(found, answers_of(*net)) > 0.999
    assert not np.array_equal(found, answers_of(*net))


def test_int8_files_store_integers(made):
    sizes = {numerics: (made(numerics)[0] / "model.pte").stat().st_size for numerics in ("fp32", "int8")}
    floats = 4 * (8 * 9 + 8 * 8 * 9 + 8 * 9 + 4 * 128)
    assert sizes["int8"] - sizes["fp32"] < 4096 - 0.75 * floats  # of the graph, and 3 of 4 bytes saved


def test_a_rule_keeps_a_layer_in_float(net, made):
    folder, built = made("int8[head=fp32]")
    assert (built.executed["int8_kernels"], built.executed["float_kernels"]) == (3, 1)
    assert [layer["layer"] for layer in built.executed["layers"] if not layer["int8"]] == ["head"]
    assert cosine(answered(folder, net[1]), built.reference[0]) > 0.9999


@pytest.mark.parametrize(
    ("numerics", "quantizer", "kernels"), [("int8", "xnnpack", 4), ("int8_dynamic", "karui", 2)]
)
def test_executorchs_own_quantizer(net, made, numerics, quantizer, kernels):
    folder, built = made(numerics, quantizer)
    assert built.executed["int8_kernels"] == kernels
    assert "int8_macs" not in built.executed
    assert cosine(answered(folder, net[1]), built.reference[0]) > 0.999
    assert cosine(answered(folder, net[1]), answers_of(*net)) > 0.999


def test_batches_beyond_the_planned_one_go_in_parts(net, made):
    source, folder = net[1], made("fp32")[0]
    predict = executorch.load(folder, source.signature, 1)
    many = {name: np.concatenate([array] * 3)[:-7] for name, array in source.probe.items()}
    found = predict(many)[0]
    first = predict(rows_of(source, ROWS))[0]
    kept = first.copy()
    predict({name: -array for name, array in rows_of(source, ROWS).items()})
    np.testing.assert_array_equal(first, kept)  # an answer is not overwritten by the next
    np.testing.assert_allclose(found, np.concatenate([first] * 3)[:-7], atol=1e-6)


def test_recurrent_layers_are_unrolled(tmp_path):
    torch.manual_seed(0)
    model = Recurrent().eval()
    source = source_of(model, rows(1, 5, 6), tmp_path)
    folder = tmp_path / "artifact"
    folder.mkdir()
    built = build(source, "fp32", folder)
    assert built.executed["delegated"]["sigmoid"] >= 5  # of each time step
    wanted = answers_of(model, source)
    assert np.abs(answered(folder, source) - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_a_transformer_is_delegated_around_what_xnnpack_does_not_take(tmp_path):
    torch.manual_seed(0)
    model = Attention().eval()
    source = source_of(model, rows(6, 8), tmp_path)
    folder = tmp_path / "artifact"
    folder.mkdir()
    built = build(source, "int8", folder)
    assert built.executed["int8_macs"] == 1.0 and built.executed["int8_kernels"] == 5
    assert built.executed["subgraphs"] > 3
    assert {"native_layer_norm", "view_copy"} <= {entry["op"] for entry in built.executed["fallback"]}
    assert cosine(answered(folder, source), built.reference[0]) > 0.9999
    assert cosine(answered(folder, source), answers_of(model, source)) > 0.999


def test_a_layer_without_an_int8_kernel_is_named_and_may_stay_in_float(tmp_path):
    torch.manual_seed(0)
    grouped, plain = nn.ConvTranspose2d(2, 2, 3, groups=2), nn.ConvTranspose2d(2, 2, 3)
    model = nn.Sequential(grouped, plain, nn.Flatten(), nn.Linear(2 * 64, 4)).eval()
    source = source_of(model, rows(2, 4, 4), tmp_path)
    folder = tmp_path / "artifact"
    folder.mkdir()
    with pytest.raises(BuildFailed, match="no INT8 kernel for 0"):
        build(source, "int8", folder)
    built = build(source, "int8[0=fp32]", folder)
    assert (built.executed["int8_kernels"], built.executed["float_kernels"]) == (2, 1)
    assert cosine(answered(folder, source), answers_of(model, source)) > 0.999


PLAIN = """
import sys
sys.modules["karui"] = None
import numpy as np, torch
x = torch.from_numpy(np.load(sys.argv[1]))
{page}
np.save(sys.argv[2], y.numpy())
"""


@pytest.mark.gate
def test_the_file_opens_without_karui_as_its_page_says(net, made, tmp_path):
    source, (folder, _) = net[1], made("int8")
    given, out = tmp_path / "rows.npy", tmp_path / "out.npy"
    np.save(given, rows(1, 8, 8)[:20])
    (snippet,) = pages.blocks(pages.ROOT / "docs" / "runtimes" / "executorch.md", "python")
    command = [sys.executable, "-c", PLAIN.replace("{page}", snippet), given, out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(out), answered(folder, source, 20))


def test_a_rule_that_fits_no_layer_is_refused(net, tmp_path):
    for numerics in ("int8[tail=fp32]", "int8_dynamic[tail=fp32]"):
        with pytest.raises(Unsupported, match="tail"):
            build(net[1], numerics, tmp_path)


def asked(precision: str, **facts) -> str | None:
    return executorch.refuses(Ask(parse_numerics(precision), **({"layers": {"Linear": 1}} | facts)))


def test_what_is_refused_before_it_costs_a_trial():
    assert [asked(p) for p in ("fp32", "int8", "int8_dynamic", "int8[a=fp32]")] == [None] * 4
    assert "FP32 and INT8" in asked("fp16") and "FP32 and INT8" in asked("bf16")
    assert "calibration" in asked("int8", calibrated=False)
    assert asked("int8_dynamic", calibrated=False) is None
    assert "LSTM" in asked("int8", layers={"LSTM": 1})
    assert asked("int8", layers={"LSTM": 1, "Linear": 1}) is None
    assert "dynamically" in asked("int8_dynamic", layers={"Conv1d": 1})
    assert "Conv3d" in asked("fp32", layers={"Conv3d": 1})
    assert "ONNX" in asked("fp32", form="onnx")
    assert "rules" in asked("fp32[a=int8]")
