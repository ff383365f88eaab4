"""A model that stays in files comes out as the one in memory does, and never is in memory whole."""

from __future__ import annotations

import re
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import karui
from karui.cli.main import main
from karui.errors import Tampered, UsageError
from karui.graph.shards import Shards
from karui.graph.weights.streamed import Spool


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)
        self.register_buffer("shift", torch.zeros(width))

    def forward(self, x):
        return x + self.down(functional.gelu(self.up(self.norm(x) + self.shift)))


class Net(nn.Module):
    """An embedding that also gives the scores, blocks, and a table that is no parameter."""

    def __init__(self, width=32, blocks=2, words=50) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("places", torch.linspace(-1, 1, 6)[:, None].repeat(1, width), persistent=False)

    def forward(self, tokens):
        return self.head(self.blocks(self.embed(tokens) + self.places)).mean(1)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = Net().eval()
    with torch.no_grad():
        for block in made.blocks:
            block.shift.normal_()
    return made


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    """Its weights in two files; the shared one is there once, as ``save_pretrained`` has it."""
    home = tmp_path_factory.mktemp("shards")
    state = {name: value.contiguous() for name, value in net.state_dict().items() if name != "head.weight"}
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, home / f"model-{number}.safetensors")
    return home


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 50, (96, 6), generator=torch.Generator().manual_seed(1))


def blank_net():
    with karui.blank():
        return Net().eval()


def task(model, tokens):
    return karui.Task(model, inputs=tokens[:4], calibrate=tokens, select=tokens, score="agreement")


@pytest.fixture(scope="module")
def made(net, folder, tokens, tmp_path_factory):
    """Recipe -> artifact folder, in memory and streamed."""
    out = tmp_path_factory.mktemp("out")
    recipes = ["int8_weights@onnxruntime", "int4_weights@onnxruntime"]
    usual = karui.quantize(task(net, tokens), recipes[:1], out / "usual")
    streamed = karui.quantize(task(blank_net(), tokens), recipes, out / "streamed", shards=folder)
    return usual, streamed


@pytest.mark.gate
def test_the_file_is_that_of_the_model_in_memory(made, tokens):
    (usual, *_), (streamed, *_) = made
    mine, theirs = (karui.load(one["artifact"])(tokens) for one in (streamed, usual))
    assert torch.equal(mine, theirs)
    assert streamed["executed"] == usual["executed"]
    assert streamed["verification"] == "verified on runtime"
    assert streamed["score"] == usual["score"]


def test_four_bits_are_rounded_by_gptq_layer_after_layer(made, net, tokens):
    found = made[1][1]
    assert found["executed"]["rounding"] == {"nearest": 1, "gptq": 5}  # a table; four layers and the head
    answers, before = karui.load(found["artifact"])(tokens), net(tokens)
    assert functional.cosine_similarity(answers, before).min() > 0.98
    assert (Path(found["artifact"]) / "model.onnx.data").is_file()


def test_the_blank_model_holds_nothing_and_keeps_its_buffers():
    model = blank_net()
    assert torch.equal(model.places, Net().places)
    assert model.embed.weight.untyped_storage().nbytes() in (0, model.embed.weight.nbytes)
    assert model.head.weight is model.embed.weight
    assert type(Net().embed.weight) is nn.Parameter  # outside of the block all is as ever


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("blocks.0.up.weight"), "missing: blocks.0.up.weight"),
        (lambda state: state.update(extra=torch.ones(2)), "left over: extra"),
        (lambda state: state.update({"blocks.1.up.bias": torch.ones(3)}), r"\(3,\) there, and \(64,\)"),
    ],
)
def test_other_weights_are_refused(net, tokens, tmp_path, change, words):
    state = {n: v.contiguous() for n, v in net.state_dict().items() if n != "head.weight"}
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UsageError) as told:
        karui.quantize(task(blank_net(), tokens), "int8_weights@onnxruntime", tmp_path / "o", shards=tmp_path)
    assert re.search(words, told.value.why)
    assert not (tmp_path / "o").exists()


def test_what_cannot_be_done_is_told(net, folder, tokens, tmp_path):
    def ask(model, recipe="int8_weights@onnxruntime", shards=folder):
        karui.quantize(task(model, tokens), recipe, tmp_path / "o", shards=shards)

    with pytest.raises(UsageError, match="holds weights of its own"):
        ask(net)
    with pytest.raises(UsageError, match="cannot be made of a model that stays in files"):
        ask(blank_net(), "int8@onnxruntime")
    with pytest.raises(UsageError, match=r"holds no \.safetensors file"):
        ask(blank_net(), shards=tmp_path)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(Tampered, match="not a whole"):
        ask(blank_net(), shards=tmp_path)
    assert not (tmp_path / "o").exists()


@pytest.mark.gate
def test_the_model_is_never_in_memory_whole(tokens, tmp_path, monkeypatch):
    """Of what is read and of what is rounded, no more than a few tensors are alive at any time."""
    torch.manual_seed(0)
    net = Net(blocks=8).eval()
    save_file(
        {n: v.contiguous() for n, v in net.state_dict().items() if n != "head.weight"},
        tmp_path / "all.safetensors",
    )
    whole, alive, most = sum(p.nbytes for p in net.parameters()), weakref.WeakSet(), []

    def watched(read):
        def call(*args):
            found = read(*args)
            alive.update([found] if isinstance(found, torch.Tensor) else [found.whole])
            most.append(sum(tensor.nbytes for tensor in alive))
            return found

        return call

    monkeypatch.setattr(Shards, "read", watched(Shards.read))
    monkeypatch.setattr(Spool, "__getitem__", watched(Spool.__getitem__))
    with karui.blank():
        model = Net(blocks=8).eval()
    karui.quantize(task(model, tokens), "int8_weights@onnxruntime", tmp_path / "out", shards=tmp_path)
    assert len(most) > 100
    assert max(most) < 0.25 * whole


SCRIPT = """
import torch, karui
from {here} import Net

def task():
    tokens = torch.randint(0, 50, (64, 6), generator=torch.Generator().manual_seed(1))
    return karui.Task(Net(), inputs=tokens[:4], calibrate=tokens)
"""


def test_the_verb_builds_the_scripts_model_without_weights(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    script = tmp_path / "large.py"
    script.write_text(SCRIPT.format(here=Path(__file__).stem))
    words = ["quantize", f"{script}:task", "--weights", "8", "--shards", str(folder)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "in 8 bits" in told and "score: agreement" in told
    assert main(["quantize", f"{script}:task", "--shards", str(folder), "--out", str(tmp_path / "no")]) == 2
    told = capsys.readouterr().err
    assert "only weights in 8 or 4 bits are made so" in told and "--weights 8" in told
