"""The mode that consumes the model: the same result as the default, in place, in little more memory."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from benchmarks.zoo.exact import zeroed
from torch import nn
from torch.nn import functional

import karui
from karui.errors import Unsupported
from karui.graph import cut as cutting
from karui.graph.inspect import size_bytes, state_digest
from karui.optimize import in_parts

torch.set_num_threads(1)
HOW = "prune_channels:ratio=0.25,importance=ln,compensate=false"
TOKENS = torch.randint(50, (8, 6), generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.first, self.second = (
            Attention(width, heads),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(self.first(x))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Decoder(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 50, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def decoder(layers=3, width=32):
    torch.manual_seed(0)
    return Decoder(width=width, layers=layers).eval()


def consume(model, how=HOW):
    return karui.prune(karui.Task(model, inputs=TOKENS), how, consume=True)


@pytest.mark.gate
def test_it_gives_what_the_default_gives():
    usual = karui.prune(karui.Task(decoder(), inputs=TOKENS), HOW)
    found = consume(decoder())
    assert found.manifest.positions == usual.manifest.positions
    mine, theirs = found.model.state_dict(), usual.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert [found.facts[key] for key in ("macs", "parameters", "form")] == [
        usual.facts[key] for key in ("macs", "parameters", "form")
    ]
    assert found.model.layers[1].up.out_features == 96
    assert found.model.layers[1].attention.q.out_features == 24


@pytest.mark.gate
def test_it_is_done_in_place_and_only_when_asked_for_by_name():
    model = decoder()
    before = state_digest(model)
    karui.prune(karui.Task(model, inputs=TOKENS), HOW)
    assert state_digest(model) == before
    assert consume(model.train()).model is model
    assert model.training and model.layers[0].attention.q.training
    assert state_digest(model) != before


@pytest.mark.gate
def test_it_is_exact():
    whole = decoder()
    found = consume(copy.deepcopy(whole))
    with torch.no_grad():
        wanted = zeroed(whole, found.manifest.positions)(TOKENS)
        assert torch.allclose(found.model(TOKENS), wanted, atol=1e-5)


@pytest.mark.gate
def test_it_is_opened_again(tmp_path):
    found = consume(decoder())
    found.save(tmp_path / "it")
    again = karui.load_pruned(tmp_path / "it", decoder())
    with torch.no_grad():
        assert torch.equal(again.model(TOKENS), found.model(TOKENS))
    assert again.manifest == found.manifest


def live_bytes():
    """Of all dense tensors that Python holds, each storage once; runtimes' own layouts have none."""
    found = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
    dense = [tensor for tensor in found if tensor.device.type == "cpu" and tensor.layout is torch.strided]
    storages = [tensor.untyped_storage() for tensor in dense]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.gate
def test_it_takes_little_more_than_the_model(monkeypatch):
    """Looked at where copies are made: masked, cut, widened, compared."""
    peak = 0

    def watched(function):
        def call(*args):
            nonlocal peak
            result = function(*args)
            peak = max(peak, live_bytes())
            return result

        return call

    looked_at = (cutting, "masked"), (cutting, "cut_module"), (in_parts, "widened"), (in_parts, "check_close")
    for module, name in looked_at:
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    others = live_bytes()
    model = decoder(layers=17, width=64)
    size = size_bytes(model)
    consume(model)
    assert size < peak - others < 1.3 * size


class Twice(Decoder):
    """The first block is run twice, the second shares a weight with the third, the last needs a flag."""

    def __init__(self) -> None:
        super().__init__(layers=4)
        self.layers[1].down.weight = self.layers[2].down.weight

    def forward(self, tokens):
        x = self.layers[0](self.layers[0](self.embed(tokens)))
        for layer in self.layers[1:]:
            x = layer(x)
        return self.head(self.norm(x))


def test_parts_that_cannot_be_cut_alone_stay_with_the_reason():
    torch.manual_seed(0)
    found = consume(Twice().eval())
    assert found.facts["stays"]["layers.0"] == "it is called 2 times in one pass"
    assert "shares weights with layers.2.down.weight" in found.facts["stays"]["layers.1"]
    assert set(found.manifest.parts) == {"layers.1.attention", "layers.2.attention", "layers.3"}
    assert found.model.layers[1].down.weight is found.model.layers[2].down.weight


class Reaching(Decoder):
    """The model reads a weight inside of a block, which the block by itself does not show."""

    def forward(self, tokens):
        bias = self.layers[1].up.bias
        return super().forward(tokens) * bias[96:].exp().sum()


def test_a_part_that_the_rest_looks_into_stays_as_it_was():
    torch.manual_seed(0)
    model = Reaching().eval()
    before = copy.deepcopy(model.layers[1].up.weight)
    found = consume(model)
    assert "layers.1" in found.facts["stays"]
    assert torch.equal(found.model.layers[1].up.weight, before)
    assert found.model.layers[0].up.out_features == 96


def test_a_model_without_parts_is_refused_and_told_why():
    with pytest.raises(Unsupported, match="nothing to remove") as error:
        consume(nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(24, 2)))
    assert "leave consume out" in error.value.why
