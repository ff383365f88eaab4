"""Recipes and numerics read and print as text, and the two are inverse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karui.errors import UsageError
from karui.numerics import PRECISIONS, Numerics, parse_numerics
from karui.recipe import Named, Recipe, parse_recipe

names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9999)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
named = st.builds(Named, names, st.dictionaries(names, values, max_size=3).map(lambda d: tuple(d.items())))
patterns = st.from_regex(r"[a-z0-9_.*]{1,8}", fullmatch=True)
rules = st.lists(st.tuples(patterns, st.sampled_from(PRECISIONS)), max_size=3).map(tuple)
numerics = st.builds(Numerics, st.sampled_from(PRECISIONS), rules)
recipes = st.builds(Recipe, st.lists(named, max_size=3).map(tuple), numerics, named)


@given(recipes)
def test_text_round_trip(recipe):
    assert parse_recipe(str(recipe)) == recipe


def test_the_documented_forms():
    recipe = parse_recipe("prune_channels:ratio=0.5 + int8[head=fp32]@onnxruntime")
    assert recipe.steps == (Named("prune_channels", (("ratio", 0.5),)),)
    assert recipe.numerics.of("head") == "fp32"
    assert recipe.numerics.of("body.0") == "int8"
    assert parse_recipe("fp32@torch_compile:mode=max-autotune").runtime.options == (("mode", "max-autotune"),)


def test_first_matching_rule_wins():
    found = parse_numerics("int8[head.*=fp32,head.a=bf16]")
    assert found.of("head.a") == "fp32"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("int8", "names no runtime"),
        ("int9@onnxruntime", "no precision 'int9'"),
        ("int8[head=fp32@onnxruntime", "names no runtime"),
        ("int8[head=fp32]x@onnxruntime", "misses its closing"),
        ("int8[head]@onnxruntime", "is not a rule"),
        ("Fold + int8@onnxruntime", "does not start with a name"),
        ("fold:x + int8@onnxruntime", "is not option=value"),
        ("fold:x=[1 + int8@onnxruntime", "names no runtime"),
        ("fold:x=1.2.3 + int8@onnxruntime", "cannot read the value"),
    ],
)
def test_bad_text_says_what_is_wrong(text, word):
    with pytest.raises(UsageError, match=word.replace("[", r"\[")):
        parse_recipe(text)
