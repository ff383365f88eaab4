"""PyTorch's ways to run: layouts, autocast and devices; what is the same code on a CPU and on a GPU."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tests.runtimes.torch_source import answers_of, images, rows_of, source_of
from torch import nn

from karui.numerics import Numerics, parse_numerics
from karui.recipe import parse_named
from karui.runtimes import Ask, Source, load

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
HOW = {
    "fp32@torch_eager:channels_last=true": 1e-5,
    "bf16@torch_eager:autocast=bf16": 0.03,
    "bf16@torch_eager:channels_last=true,autocast=bf16": 0.03,
    "fp32@torch_compile:mode=reduce-overhead,channels_last=true": 1e-5,
    "bf16@torch_compile:autocast=bf16": 0.03,
}
ON_GPU = {
    "fp32@torch_eager:device=cuda": 1e-4,
    "fp16@torch_eager:device=cuda,channels_last=true": 0.02,
    "bf16@torch_compile:mode=reduce-overhead,device=cuda,autocast=bf16": 0.05,
    "fp32@torch_compile:mode=max-autotune,device=cuda,channels_last=true": 1e-4,
    "fp16@torch_compile:backend=tensorrt,device=cuda": 0.02,
}


class Net(nn.Module):
    """(n, 3, 8, 8) -> (n, 4)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8 * 16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.norm(self.conv(image)))
        return self.head(nn.functional.max_pool2d(self.deep(seen) + seen, 2).flatten(1))


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> tuple[nn.Module, Source]:
    torch.manual_seed(0)
    model = Net().eval()
    return model, source_of(model, images(3), tmp_path_factory.mktemp("source"))


def answered(source: Source, recipe: str, folder) -> tuple[list[np.ndarray], dict]:
    numerics, _, runtime = recipe.partition("@")
    made = load(parse_named(runtime))
    assert made.refuses(Ask(Numerics(numerics))) is None
    given = dataclasses.replace(source, numerics=parse_numerics(numerics))
    built = made.build(given, folder)
    predict = made.load(folder, source.signature, 1)
    return [np.array(predict(rows_of(source, count))[0]) for count in (1, 16, 16)], dict(built.executed)


def check(net, recipe, limit, folder) -> dict:
    model, source = net
    wanted = answers_of(model, source)
    found, facts = answered(source, recipe, folder)
    for answer in found:
        assert answer.dtype == np.float32
        assert np.abs(answer - wanted[: len(answer)]).max() <= limit * np.abs(wanted).max()
    assert np.array_equal(found[1], found[2])
    if limit > 1e-3:  # it was really computed in half precision
        assert np.abs(found[1] - wanted[:16]).max() > 1e-5 * np.abs(wanted).max()
    return facts


@pytest.mark.gate
@pytest.mark.parametrize("recipe", HOW)
def test_layouts_and_autocast_answer_as_the_model_does(recipe, net, tmp_path):
    facts = check(net, recipe, HOW[recipe], tmp_path)
    assert facts["precision"] == recipe.partition("@")[0]
    assert ("channels last" in facts["detail"]) == ("channels_last" in recipe)
    assert ("autocast bf16" in facts["detail"]) == ("autocast" in recipe)


@pytest.mark.gate
def test_the_layout_reaches_weights_and_images(net, tmp_path):
    runtime = load(parse_named("torch_eager:channels_last=true"))
    runtime.build(net[1], tmp_path)
    graph = runtime.place.open(tmp_path / "model.pt2")
    convs = [weight for weight in graph.parameters() if weight.ndim == 4 and weight.shape[1] > 1]
    assert convs and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convs)
    assert runtime.place.given(images(3)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gate
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it is used")
@pytest.mark.parametrize("runtime", ["torch_eager", "torch_compile"])
def test_a_gpu_that_is_not_there_is_refused_and_not_replaced(runtime):
    reason = load(parse_named(f"{runtime}:device=cuda")).refuses(Ask(Numerics()))
    assert "needs an NVIDIA GPU" in reason and torch.__version__ in reason


def test_tensorrt_compiles_on_a_gpu_and_with_its_package_only(monkeypatch):
    def asked(options: str) -> str | None:
        return load(parse_named(f"torch_compile:backend=tensorrt{options}")).refuses(Ask(Numerics()))

    assert asked("") == "backend=tensorrt needs device=cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "Inductor's" in asked(",device=cuda,mode=max-autotune")
    assert find_spec("torch_tensorrt") or "pip install torch-tensorrt" in asked(",device=cuda")


@pytest.mark.parametrize("runtime", ["torch_eager", "torch_compile"])
def test_autocast_says_the_same_as_the_precision(runtime):
    cast = load(parse_named(f"{runtime}:autocast=bf16"))
    assert cast.refuses(Ask(Numerics("bf16"))) is None and not cast.casts_in_torch("bf16")
    assert "autocast=bf16 computes in bf16, not in fp32" in cast.refuses(Ask(Numerics()))
    assert load(parse_named(runtime)).casts_in_torch("bf16")


def test_compressed_rows_stay_on_the_cpu():
    assert "on the CPU" in load(parse_named("torch_eager:sparse=true,channels_last=true")).refuses(
        Ask(Numerics())
    )


@needs_gpu
@pytest.mark.parametrize("recipe", ON_GPU)
def test_a_gpu_answers_as_the_model_does(recipe, net, tmp_path):
    assert "device cuda" in check(net, recipe, ON_GPU[recipe], tmp_path)["detail"]
