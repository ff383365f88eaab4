"""What every runtime promises. A new file in ``runtimes/`` is tested with no edit here."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys

import numpy as np
import pytest

from karui import runtimes
from karui.artifact import Signature
from karui.errors import KaruiError, MissingRuntime, UsageError
from karui.numerics import PRECISIONS, Numerics
from karui.options import options_of
from karui.recipe import Named, parse_recipe

every = pytest.mark.parametrize("name", runtimes.names())
BATCHES = (1, 5, 100)


def class_of(name: str) -> type[runtimes.Runtime]:
    try:
        return runtimes.find(name)
    except MissingRuntime as error:
        pytest.skip(error.line)


@every
def test_it_is_a_final_frozen_dataclass_whose_options_have_defaults(name):
    cls = class_of(name)
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen and cls.__final__
    assert cls.__bases__ == (runtimes.Runtime,)
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(cls))
    assert inspect.getmodule(cls).__doc__


@every
def test_its_text_reads_back(name):
    made = class_of(name)()
    recipe = parse_recipe(f"fp32@{Named(name, options_of(made))}")
    assert parse_recipe(str(recipe)) == recipe
    assert runtimes.load(recipe.runtime) == made


@every
def test_an_unknown_option_is_named_and_the_nearest_suggested(name):
    known = [field.name for field in dataclasses.fields(class_of(name))]
    wrong = f"{known[0]}x" if known else "colour"
    with pytest.raises(UsageError, match=f"{name} has no option '{wrong}'") as error:
        runtimes.load(Named(name, ((wrong, 1),)))
    assert f"did you mean '{known[0]}'" in error.value.fix if known else "none" in error.value.fix


@every
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_refuses_a_precision_or_runs_it(name, precision, case, outcome):
    found, made = case("dicts"), outcome(name, precision, "dicts")
    if made.refused is not None:
        assert 10 < len(made.refused) < 200 and "\n" not in made.refused
        return
    assert made.executed["precision"] and made.executed["detail"]
    json.dumps(dict(made.executed))
    answers = made.predict({key: rows[:1] for key, rows in found.rows.items()})
    assert [a.shape for a in answers] == [a[:1].shape for a in found.answers]
    for mine, theirs in zip(answers, found.answers):
        assert np.abs(mine - theirs[:1]).max() < 0.1 * np.abs(theirs).max()


@pytest.mark.gate
@every
@pytest.mark.parametrize("kind", ["dicts", "narrow module", "narrow graph"])
def test_fp32_agrees_with_eager_and_two_calls_are_bit_equal(name, kind, case, outcome):
    found, made = case(kind), outcome(name, "fp32", kind)
    if made.refused is not None:
        pytest.skip(f"{name} refuses fp32: {made.refused}")
    for batch in BATCHES:
        rows = {key: array[:batch] for key, array in found.rows.items()}
        first = [np.array(answer) for answer in made.predict(rows)]
        second = made.predict(rows)
        assert len(first) == len(found.answers)
        for one, two, wanted in zip(first, second, found.answers):
            np.testing.assert_array_equal(one, two)
            assert np.abs(one - wanted[:batch]).max() <= 1e-4 * np.abs(wanted).max()


@every
def test_it_leaves_the_callers_arrays_alone(name, case, outcome):
    made = outcome(name, "fp32", "dicts")
    if made.refused is not None:
        pytest.skip(f"{name} refuses fp32: {made.refused}")
    rows = {key: array[:5].copy() for key, array in case("dicts").rows.items()}
    kept = {key: array.copy() for key, array in rows.items()}
    made.predict(rows)
    assert all(np.array_equal(rows[key], kept[key]) for key in rows)


@every
def test_a_build_from_a_broken_capture_says_why(name, tmp_path):
    runtime = class_of(name)()
    source, folder = tmp_path / "source", tmp_path / "artifact"
    source.mkdir()
    folder.mkdir()
    for file in ("model.pt2", "traced.pt"):
        (source / file).write_bytes(b"not a model")
    signature = Signature("args", (), ())
    given = runtimes.Source(source, signature, Numerics(), calibrate={}, probe={})
    with pytest.raises(KaruiError) as error:
        runtime.build(given, folder)
        runtime.load(folder, signature, 1)
    assert error.value.why


def needed(name: str) -> str | None:
    """The package that the runtime's file imports under its own name, as in ``import onnxruntime``."""
    folder = runtimes.__path__[0]
    with open(f"{folder}/{name}.py", encoding="utf-8") as file:
        return name if re.search(rf"^import {name}\b", file.read(), re.MULTILINE) else None


@pytest.mark.parametrize("name", [name for name in runtimes.names() if needed(name)])
def test_a_missing_package_names_the_extra(name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"karui.runtimes.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingRuntime, match=re.escape(f"pip install 'karui[{name}]'")):
        runtimes.load(Named(name))


def test_an_unknown_runtime_lists_the_known():
    with pytest.raises(UsageError, match="torch_eager"):
        runtimes.load(Named("abacus"))
