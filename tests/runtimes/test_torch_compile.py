from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.runtimes.torch_source import Faulty, answers_of, cosine, images, rows_of, source_of
from torch import nn

from karui import host
from karui.errors import BuildFailed
from karui.graph import inductor_int8
from karui.numerics import Numerics
from karui.recipe import parse_named
from karui.runtimes import Ask, load

torch_compile = load(parse_named("torch_compile"))


def needs_int8() -> None:
    if reason := torch_compile.refuses(Ask(Numerics("int8"), flags=tuple(host.flags()))):
        pytest.skip(f"INT8 is refused here: {reason}")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    model = Faulty().eval()
    return model, source_of(model, images(), tmp_path_factory.mktemp("source"), "int8")


def test_the_two_faults_of_the_int8_lowering_are_avoided(source, tmp_path):
    """A sum that wrote into a weight when the first batch was 1; an image of one channel."""
    needs_int8()
    model, given = source
    built = torch_compile.build(given, tmp_path)
    assert (built.executed["int8_kernels"], built.executed["int8_macs"]) == (3, 1.0)
    assert built.executed["detail"].startswith("Inductor for avx")
    assert "qconv x1, qlinear x2" in built.executed["detail"]
    assert "C++ compiler" in built.executed["detail"]
    predict = torch_compile.load(tmp_path, given.signature, 1)
    calls = [np.array(predict(rows_of(given, size))[0]) for size in (1, 1, 1, 64, 64, 1)]
    for answer in calls:
        np.testing.assert_allclose(answer, built.reference[0][: len(answer)], atol=0.01)
    assert np.array_equal(calls[0], calls[1]) and np.array_equal(calls[0], calls[5])
    assert np.array_equal(calls[3], calls[4])
    assert cosine(calls[3], answers_of(model, given)) > 0.995


def test_the_sum_in_place_would_be_seen(source, tmp_path, monkeypatch):
    """Without the rewriting, equal calls differ: what verification looks for."""
    needs_int8()
    monkeypatch.setattr(inductor_int8, "split_sums", lambda module: None)
    given = source[1]
    reference = torch_compile.build(given, tmp_path).reference[0]
    predict = torch_compile.load(tmp_path, given.signature, 1)
    first, second, third = (np.array(predict(rows_of(given, 1))[0]) for _ in range(3))
    if np.array_equal(first, second) and np.array_equal(second, third):
        np.testing.assert_allclose(first, reference[:1], atol=0.01)
        pytest.skip(f"torch {torch.__version__} no longer adds into the weight")
    assert np.abs(third - reference[:1]).max() > 0.01


def test_float_artifacts_are_the_program_and_say_that_they_need_a_compiler(source, tmp_path):
    given = source[1]
    (tmp_path / "a").mkdir()
    built = torch_compile.build(dataclasses.replace(given, numerics=Numerics()), tmp_path / "a")
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["model.pt2"]
    assert "C++ compiler" in built.executed["detail"] and built.reference is None


def test_no_int8_kernel_is_a_failed_build(tmp_path):
    needs_int8()
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    given = source_of(model, images(), tmp_path, "int8[*=fp32]")
    (tmp_path / "artifact").mkdir()
    with pytest.raises(BuildFailed, match="no INT8 kernel"):
        torch_compile.build(given, tmp_path / "artifact")


def test_modes_are_options():
    assert load(parse_named("torch_compile:mode=max-autotune")).mode == "max-autotune"
