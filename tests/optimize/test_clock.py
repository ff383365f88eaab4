"""The clock that techniques ask: it remembers what it timed on this host, and nothing else."""

from __future__ import annotations

import json

import pytest

from karui.measurement import Ratio
from karui.optimize import clock
from karui.optimize.clock import RuntimeClock, cache_folder, remember, remembered
from karui.recipe import parse_recipe


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(tmp_path, recipe="prune_channels:latency=0.5 + fp32@onnxruntime", **facts):
    return RuntimeClock(
        None, parse_recipe(recipe), tmp_path / "timing", {"batch": 1, "threads": 1} | facts, 0
    )


def test_what_was_timed_is_not_timed_again(tmp_path, monkeypatch):
    one, timed = made(tmp_path), []

    def pretend(self, variants, pace):
        timed.append(sorted(variants))
        return {name: Ratio(2.0, 1.9, 2.1, "faster") for name in variants if name != "broken"}

    monkeypatch.setattr(RuntimeClock, "timed", pretend)
    variants = {"a": object, "broken": object}
    assert list(one.ratios(variants)) == ["a"]
    assert made(tmp_path).ratios(variants)["a"].ratio == 2.0
    assert timed == [["a", "broken"], ["broken"]]
    assert made(tmp_path).ratios({"a": object}, careful=True)["a"].low == 1.9
    assert timed[2:] == [["a"]]  # a quick timing is no careful one


@pytest.mark.parametrize(
    "other", [{"batch": 8}, {"threads": 2}, {"recipe": "prune_channels:latency=0.5 + int8@onnxruntime"}]
)
def test_another_setting_is_another_timing(tmp_path, other):
    assert made(tmp_path).key("a", False) != made(tmp_path, **other).key("a", False)


def test_other_steps_before_the_runtime_do_not_matter(tmp_path):
    assert made(tmp_path).key("a", False) == made(
        tmp_path, "prune_channels:latency=0.7 + fp32@onnxruntime"
    ).key("a", False)


def test_torn_and_strange_lines_are_left_out(tmp_path):
    path = cache_folder() / clock.MEMORY
    remember(path, {"k": Ratio(1.5, 1.4, 1.6, "faster")})
    with path.open("a") as file:
        file.write('["half", 1.0, \n{"x": 1}\n["few", 1]\n[1, "a", 2, 3]\nnull\n["z", 2')
    assert list(remembered(path)) == ["k"]
    assert json.loads(path.read_text().splitlines()[0]) == ["k", 1.5, 1.4, 1.6]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    remember(cache_folder() / clock.MEMORY, {"k": Ratio(1.5, 1.4, 1.6, "faster")})
    assert remembered(cache_folder() / clock.MEMORY) == {}
