"""What every technique promises. A new file in ``techniques/`` is tested with no edit here."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import re

import numpy as np
import pytest

from karui import techniques
from karui.errors import MissingRuntime, UsageError
from karui.graph.call import run_all
from karui.graph.capture import capture
from karui.graph.inspect import state_digest
from karui.graph.program import open_program, predictor
from karui.options import options_of
from karui.recipe import Named, parse_recipe

every = pytest.mark.parametrize("name", techniques.names())
REFERENCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:\S+|et al\.? \d{4}")


def class_of(name: str) -> type[techniques.Technique]:
    try:
        return techniques.find(name)
    except MissingRuntime as error:
        pytest.skip(error.line)


def apply(name: str, found) -> techniques.Applied:
    given = techniques.Given(dict(found.rows), dict(found.rows), found.signature)
    return class_of(name)().apply(copy.deepcopy(found.model), given)


@every
def test_it_is_a_final_frozen_dataclass_whose_options_have_defaults(name):
    cls = class_of(name)
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen and cls.__final__
    assert cls.__bases__ == (techniques.Technique,)
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(cls))


@every
def test_it_says_where_the_method_comes_from(name):
    assert REFERENCE.search(inspect.getmodule(class_of(name)).__doc__ or "")


@every
def test_its_text_reads_back(name):
    made = class_of(name)()
    recipe = parse_recipe(f"{Named(name, options_of(made))} + fp32@torch_eager")
    assert parse_recipe(str(recipe)) == recipe
    assert techniques.load(recipe.steps[0]) == made


@every
def test_an_unknown_option_is_named(name):
    class_of(name)
    with pytest.raises(UsageError, match=f"{name} has no option 'colour'") as error:
        techniques.load(Named(name, (("colour", "red"),)))
    assert error.value.fix


@every
@pytest.mark.parametrize("kind", ["cnn", "dicts"])
def test_the_result_has_the_same_form_and_can_be_captured(name, kind, case, tmp_path):
    found = case(kind)
    applied = apply(name, found)
    answers = run_all(applied.model, found.signature.style, dict(found.rows))
    assert [a.shape for a in answers] == [a.shape for a in found.answers]
    signature = capture(applied.model, found.signature, dict(found.rows), tmp_path)
    assert signature.dynamic_batch
    again = predictor(open_program(tmp_path / "model.pt2"), signature)(dict(found.rows))
    for one, other in zip(again, answers):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@every
def test_it_does_the_same_twice_and_accounts_for_it(name, case):
    found = case("cnn")
    before = state_digest(found.model)
    one, two = apply(name, found), apply(name, found)
    assert state_digest(one.model) == state_digest(two.model)
    assert (one.touched, dict(one.skipped), dict(one.facts)) == (
        two.touched,
        dict(two.skipped),
        dict(two.facts),
    )
    assert state_digest(found.model) == before
    paths = {path for path, _ in found.model.named_modules()}
    assert set(one.touched) <= paths
    assert all(one.skipped.values())
    json.dumps(dict(one.facts))


def test_an_unknown_technique_lists_the_known():
    with pytest.raises(UsageError, match="fold_norm"):
        techniques.load(Named("magic"))
