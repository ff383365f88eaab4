"""Four kinds of network, and models with every oddity, go through ``optimize`` with model and data alone."""

from __future__ import annotations

import jobs
import numpy as np
import pytest
import torch
from torch import nn

import karui

pytestmark = pytest.mark.gate


class Cnn(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Conv2d(8, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Lstm(nn.Module):
    """Two inputs by keyword, of different rank and type; nested answers in a dict."""

    def __init__(self):
        nn.Module.__init__(self)
        self.lstm, self.place = nn.LSTM(6, 24, batch_first=True), nn.Embedding(9, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, series, place):
        last = self.lstm(series)[0][:, -1] + self.place(place)
        return {"features": (last, [last * 2]), "logits": self.head(last), "nothing": None}


class Transformer(nn.Module):
    """Integer inputs; the embedding is the output layer's weight as well; dropout; hooks."""

    def __init__(self):
        nn.Module.__init__(self)
        self.embed, self.place = nn.Embedding(30, 16), nn.Parameter(torch.randn(10, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 30, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(self.encoder(self.embed(tokens) + self.place).mean(1))


class Bare(nn.Module):
    """No parameters; one dict goes in, a tuple comes out."""

    def forward(self, batch):
        return batch["a"].mean(2) + batch["b"], batch["a"].amax(2)


def cnn(made):
    model = Cnn().eval()
    return model, *jobs.clear(model, torch.randn(500, 1, 12, 12, generator=made))


def lstm(made):
    model = Lstm().eval()
    inputs = {
        "series": torch.randn(400, 7, 6, generator=made),
        "place": torch.randint(0, 9, (400,), generator=made),
    }
    with torch.no_grad():
        return model, inputs, model(**inputs)["logits"].argmax(1)


def transformer(made):
    model = Transformer().eval()
    inputs, labels = jobs.clear(model, torch.randint(0, 30, (800, 10), generator=made))
    model.encoder.register_forward_hook(lambda part, given, answer: None)
    model.register_forward_pre_hook(lambda part, given: None)
    return model.train(), inputs, labels


def bare(made):
    inputs = {"a": torch.randn(400, 3, 5, generator=made), "b": torch.randn(400, 3, generator=made)}
    return Bare(), inputs, Bare()(inputs)[0].argmax(1)


CASES = {"cnn": cnn, "lstm": lstm, "transformer": transformer, "bare": bare}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Result, model and inputs of each case; run when first asked for."""
    done = {}

    def get(name):
        if name not in done:
            done[name] = None
            torch.manual_seed(0)
            model, inputs, labels = CASES[name](torch.Generator().manual_seed(1))
            before = jobs.portrait(model)
            result = karui.optimize(
                karui.Task(model=model, select=(inputs, labels)),
                max_drop=20,  # whether INT8 keeps the answers of untrained weights is not the question here
                out=tmp_path_factory.mktemp(name) / "run",
                settings=jobs.quick(*(jobs.FLOAT_AND_INT8 if name != "bare" else jobs.FP32)),
            )
            done[name] = result, model, inputs, before
        return done[name] or pytest.fail("its run failed")

    return get


def rows_of(result):
    """Every recipe with its row; one that was refused has that status."""
    rows = {row["recipe"]: row for row in result.facts["trials"]}
    return rows | {row["recipe"]: row | {"status": "refused"} for row in result.facts["refused"]}


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_a_network_goes_through_with_no_settings(case, name):
    check_network(case(name)[0])


def test_an_mlp_goes_through_with_no_settings(run_folder):
    from karui.optimize.result import open_result

    check_network(open_result(run_folder))


def check_network(result):
    rows = rows_of(result)
    assert set(rows) >= set(jobs.FLOAT_AND_INT8)
    failed = {recipe: row["reason"] for recipe, row in rows.items() if row["status"] == "failed"}
    assert failed == {}
    assert all(row["reason"] for row in rows.values())
    for runtime in ("onnxruntime", "openvino")[: 1 + jobs.HAS_OPENVINO]:
        assert rows[f"fp32@{runtime}"]["quality"]["drop"] == 0
        assert rows[f"fp32@{runtime}"]["verification"]["status"] == "verified on runtime"
    int8 = [
        row for row in rows.values() if row["precision"].startswith("int8") and row["status"] != "refused"
    ]
    assert int8
    assert result.exit_code == 0
    assert result.best is not None


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("tied weights", "transformer"),
        ("integer inputs", "transformer"),
        ("train mode on, with hooks", "transformer"),
        ("dict output, nested", "lstm"),
        ("several inputs", "lstm"),
        ("tuple output", "bare"),
        ("no parameters", "bare"),
        ("one dict argument", "bare"),
    ],
)
def test_an_odd_model_goes_through_and_stays_as_it_was(case, what, name):
    result, model, _, before = case(name)
    row = rows_of(result)["fp32@onnxruntime"]
    assert row["status"] == "kept", row["reason"]
    assert row["quality"]["drop"] == 0
    assert result.exit_code == 0
    assert jobs.portrait(model) == before


def test_facts_of_odd_models(case):
    tied = case("transformer")[0].facts["task"]
    model = Transformer()
    assert tied["parameters"] == sum(p.numel() for p in model.parameters())  # a shared weight counts once
    assert any("training mode" in note for note in tied["notes"])
    assert case("bare")[0].facts["task"]["parameters"] == 0
    assert [port["dtype"] for port in case("lstm")[0].facts["task"]["inputs"]] == ["float32", "int64"]


def same(mine, theirs):
    """Equal structure, kinds and values."""
    if isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (tuple, list)):
        return type(mine) is type(theirs) and all(map(same, mine, theirs))
    if theirs is None:
        return mine is None
    return mine.shape == theirs.shape and np.allclose(mine, theirs, atol=1e-4)


def leaves(value):
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    return [] if value is None else [value]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("runtime", ["torch_eager", "onnxruntime"])
@pytest.mark.parametrize("rows", [1, 7])
def test_load_answers_like_the_original(case, name, runtime, rows):
    result, model, inputs, _ = case(name)
    call = karui.load(result.folder / "trials" / f"{runtime}-fp32" / "artifact")
    few = {key: value[:rows] for key, value in inputs.items()} if isinstance(inputs, dict) else inputs[:rows]
    plain = {key: value.numpy() for key, value in few.items()} if isinstance(few, dict) else few.numpy()
    model = model.eval()
    with torch.no_grad():
        wanted = model(**few) if name == "lstm" else model(few)
    answers = [(call(few), torch.Tensor), (call(plain), np.ndarray)]
    if name == "lstm":
        answers.append((call(**few), torch.Tensor))
        answers.append((call(few["series"], few["place"]), torch.Tensor))
        answers.append((call(few["series"], place=few["place"]), torch.Tensor))
    for answer, kind in answers:
        assert same(answer, wanted)
        assert all(type(leaf) is kind for leaf in leaves(answer))


def test_load_says_what_does_not_fit(case):
    result, _, inputs, _ = case("lstm")
    call = karui.load(result.folder / "trials" / "onnxruntime-fp32" / "artifact")
    series, place = inputs["series"][:2], inputs["place"][:2]
    for args, kwargs, words in (
        ((series,), {}, "do not fit the model"),
        ((series, place, place), {}, "do not fit the model"),
        ((), {"series": series, "plaice": place}, "plaice"),
        ((series.double(), place), {}, "series does not fit the model"),
        ((series[:, 1:], place), {}, "series does not fit the model"),
        ((series, place[:1]), {}, "differ in batch size"),
    ):
        with pytest.raises(karui.KaruiError, match=words):
            call(*args, **kwargs)
