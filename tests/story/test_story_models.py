"""Models that are not a plain chain of layers: what they are called with, and what they give back."""

from __future__ import annotations

import jobs
import numpy as np
import pytest
import torch
from torch import nn

import karui

pytestmark = pytest.mark.gate


class Tied(nn.Module):
    """Integer inputs; the embedding is the output layer's weight as well; dropout."""

    def __init__(self):
        nn.Module.__init__(self)
        self.embed = nn.Embedding(20, 16)
        self.mix = nn.Linear(16, 16)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(16, 20, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(self.drop(torch.tanh(self.mix(self.embed(tokens)))).mean(1))


class Several(nn.Module):
    """Two inputs of different rank and type by keyword; nested answers."""

    def __init__(self):
        nn.Module.__init__(self)
        self.image, self.code = nn.Conv2d(1, 4, 3), nn.Embedding(9, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, image, code):
        seen = torch.relu(self.image(image)).mean((2, 3)) + self.code(code)
        return {"features": (seen, [seen * 2]), "logits": self.head(seen), "nothing": None}


class Bare(nn.Module):
    """No parameters; one dict goes in, a tuple comes out."""

    def forward(self, batch):
        return batch["a"].mean(2) + batch["b"], batch["a"].amax(2)


def tied_case():
    torch.manual_seed(0)
    model = Tied().train()
    seen = []
    model.mix.register_forward_hook(lambda part, given, answer: seen.append(1))
    model.register_forward_pre_hook(lambda part, given: None)
    tokens = torch.randint(0, 20, (400, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model.eval()(tokens).argmax(1)
    return model.train(), tokens, labels


def several_case():
    torch.manual_seed(0)
    model, made = Several().eval(), torch.Generator().manual_seed(1)
    inputs = {
        "image": torch.randn(400, 1, 6, 6, generator=made),
        "code": torch.randint(0, 9, (400,), generator=made),
    }
    with torch.no_grad():
        return model, inputs, model(**inputs)["logits"].argmax(1)


def bare_case():
    made = torch.Generator().manual_seed(1)
    inputs = {"a": torch.randn(400, 3, 5, generator=made), "b": torch.randn(400, 3, generator=made)}
    return Bare(), inputs, Bare()(inputs)[0].argmax(1)


CASES = {"tied": tied_case, "several": several_case, "bare": bare_case}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Result, model and inputs of each case; run when first asked for."""
    done = {}

    def get(name):
        if name not in done:
            model, inputs, labels = CASES[name]()
            before = jobs.portrait(model)
            task = karui.Task(model=model, select=(inputs, labels))
            result = karui.optimize(task, out=tmp_path_factory.mktemp(name) / "run", settings=jobs.quick())
            assert jobs.portrait(model) == before
            done[name] = result, model.eval(), inputs
        return done[name]

    return get


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("tied weights", "tied"),
        ("integer inputs", "tied"),
        ("train mode on, with hooks", "tied"),
        ("dict output, nested", "several"),
        ("several inputs", "several"),
        ("tuple output", "bare"),
        ("no parameters", "bare"),
        ("one dict argument", "bare"),
    ],
)
def test_an_odd_model_goes_through(case, what, name):
    result, _, _ = case(name)
    rows = {row["id"]: row for row in result.facts["trials"]}
    assert rows["onnxruntime-fp32"]["status"] == "kept", rows["onnxruntime-fp32"]["reason"]
    assert rows["onnxruntime-fp32"]["quality"]["drop"] == 0
    assert result.exit_code == 0


def test_facts_of_odd_models(case):
    tied, _, _ = case("tied")
    assert tied.facts["task"]["parameters"] == 20 * 16 + 16 * 16 + 16  # the shared weight counts once
    assert any("training mode" in note for note in tied.facts["task"]["notes"])
    bare, _, _ = case("bare")
    assert bare.facts["task"]["parameters"] == 0
    several, _, _ = case("several")
    assert [port["dtype"] for port in several.facts["task"]["inputs"]] == ["float32", "int64"]


def same(mine, theirs):
    """Equal structure, kinds and values."""
    if isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (tuple, list)):
        return type(mine) is type(theirs) and all(map(same, mine, theirs))
    if theirs is None:
        return mine is None
    return mine.shape == theirs.shape and np.allclose(mine, theirs, atol=1e-5)


def leaves(value):
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    return [] if value is None else [value]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [1, 7])
def test_load_answers_like_the_original(case, name, rows):
    result, model, inputs = case(name)
    call = karui.load(result.best)
    few = {key: value[:rows] for key, value in inputs.items()} if isinstance(inputs, dict) else inputs[:rows]
    plain = {key: value.numpy() for key, value in few.items()} if isinstance(few, dict) else few.numpy()
    with torch.no_grad():
        wanted = model(**few) if name == "several" else model(few)
    answers = [(call(few), torch.Tensor), (call(plain), np.ndarray)]
    if name == "several":
        answers.append((call(**few), torch.Tensor))
        answers.append((call(few["image"], few["code"]), torch.Tensor))
        answers.append((call(few["image"], code=few["code"]), torch.Tensor))
    for answer, kind in answers:
        assert same(answer, wanted)
        assert all(type(leaf) is kind for leaf in leaves(answer))


def test_load_says_what_does_not_fit(case):
    result, _, inputs = case("several")
    call = karui.load(result.folder / "trials" / "onnxruntime-fp32" / "artifact")
    image, code = inputs["image"][:2], inputs["code"][:2]
    for args, kwargs, words in (
        ((image,), {}, "do not fit the model"),
        ((image, code, code), {}, "do not fit the model"),
        ((), {"image": image, "kode": code}, "kode"),
        ((image.double(), code), {}, "image does not fit the model"),
        ((image[:, :, 1:], code), {}, "image does not fit the model"),
        ((image, code[:1]), {}, "differ in batch size"),
    ):
        with pytest.raises(karui.KaruiError, match=words):
            call(*args, **kwargs)
