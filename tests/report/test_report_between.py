"""Runs side by side: what is told as a change, what is not, and when seconds may be compared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import sample

from karui.report.beside import markdown, text
from karui.report.between import CONDITIONS, compare

Doc = dict[str, Any]
ORT, INT8 = "fp32@onnxruntime", "int8@onnxruntime"


def edited(*edits: tuple[str, Any]) -> Doc:
    """The full sample with values at ``recipe/key/key``, or at ``/key/key`` of the run."""
    result = sample.full()
    for path, value in edits:
        recipe, *keys = path.split("/")
        at = next(t for t in result["trials"] if t["recipe"] == recipe) if recipe else result
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
    return result


def changes(other: Doc, recipe: str, first: Doc | None = None) -> list[str]:
    facts = compare([("a", first or sample.full()), ("b", other)])
    return next(row["changes"][1] for row in facts["rows"] if row["recipe"] == recipe)


def faster(by: float) -> tuple[str, Any]:
    entry = next(t for t in sample.full()["trials"] if t["recipe"] == INT8)
    return f"{INT8}/speedup", sample.ratio(entry["speedup"]["ratio"] * by, sample.EAGER, "x")


def without(result: Doc, *recipes: str) -> Doc:
    result["trials"] = [t for t in result["trials"] if t["recipe"] not in recipes]
    return result


WORSE, BETTER = sample.quality(0.012, "within", 850, 0.9141), sample.quality(-0.03, "within", 850, 0.9141)
CHANGES: dict[str, tuple[Doc, Doc]] = {
    "faster": (edited(faster(1.05)), edited(faster(1.03))),
    "slower": (edited(faster(0.95)), edited(faster(0.97))),
    "larger": (edited((f"{INT8}/size_bytes", 95_000)), edited((f"{INT8}/size_bytes", 90_500))),
    "smaller": (edited((f"{INT8}/size_bytes", 85_000)), edited((f"{INT8}/size_bytes", 89_500))),
    "loses more": (edited((f"{INT8}/quality", WORSE)), edited((f"{INT8}/quality/drop", 0.0030))),
    "loses less": (edited((f"{INT8}/quality", BETTER)), edited((f"{INT8}/quality/drop", -0.0010))),
    "kept → rejected": (edited((f"{INT8}/status", "rejected")), edited()),
    "no longer best": (edited(("/best", "onnxruntime-fp32")), edited()),
    "gone": (without(sample.full(), INT8), edited()),
}


@pytest.mark.gate
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_beyond_both_intervals_and_only_there(change: str) -> None:
    is_one, is_none = CHANGES[change]
    assert change in changes(is_one, INT8)
    assert changes(is_none, INT8) == []


def test_a_new_recipe_and_a_new_best() -> None:
    assert changes(sample.full(), INT8, first=without(sample.full(), INT8)) == ["new"]
    assert "now best" in changes(edited(("/best", "onnxruntime-fp32")), ORT)


def test_the_speed_of_the_original_is_no_change() -> None:
    eager = "fp32@torch_eager"
    assert changes(edited((f"{eager}/speedup", sample.ratio(3.0, "y", "x"))), eager) == []


def test_losses_in_other_scores_are_not_compared() -> None:
    assert "loses more" not in changes(edited(("/task/score", "top5"), (f"{INT8}/quality", WORSE)), INT8)


EDITS = {
    "machine": (("/host/cpu", "AMD EPYC"), False),
    "cores": (("/host/cores", 8), False),
    "threads": (("/target/threads", 2), False),
    "batch": (("/target/batch", 64), False),
    "model": (("/task/parameters", 77_755), False),
    "original": (("/baseline", "torchscript-fp32"), False),
    "score": (("/task/score", "top5"), True),
    "data": (("/task/splits", {"select": 100}), True),
    "budget": (("/budget/allowed", 0.01), True),
    "versions": (("/host/versions", {"torch": "2.14"}), True),
}


@pytest.mark.gate
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_different_condition_is_named_and_forbids_comparing_seconds_where_it_must(condition: str) -> None:
    edit, comparable = EDITS[condition]
    facts = compare([("a", sample.full()), ("b", edited(edit))])
    assert condition in facts["differences"]
    assert facts["times_comparable"] is comparable
    said = text([("a", sample.full()), ("b", edited(edit))])
    assert ("Seconds of these runs cannot be compared" in said) is not comparable
    assert f"Different {condition}: A " in said


@pytest.mark.gate
def test_equal_runs_have_no_difference() -> None:
    facts = compare([("a", sample.full()), ("b", sample.full())])
    assert facts["differences"] == {} and facts["times_comparable"] and not facts["best_changed"]
    assert all(row["changes"] == [[], []] for row in facts["rows"])


def test_other_data_of_the_same_size_shows_in_the_score_of_the_original() -> None:
    other = edited(("fp32@torch_eager/quality/value", 0.9))
    assert list(compare([("a", sample.full()), ("b", other)])["differences"]) == ["data"]
    assert "Losses were measured on other data." in text([("a", sample.full()), ("b", other)])


@pytest.mark.gate
def test_recipes_of_one_run_alone_are_listed() -> None:
    fewer = without(sample.full(), "fp32@openvino", "int8@openvino")
    for said in (text([("a", sample.full()), ("b", fewer)]), text([("a", fewer), ("b", sample.full())])):
        assert "int8@openvino" in said.partition("Only in ")[2]
        assert "int8@openvino" not in said.partition("Only in ")[0]


def test_the_best_of_any_run_stands_in_the_table() -> None:
    said = text([("a", without(edited(("/best", None)), INT8)), ("b", sample.full())])
    assert f"{INT8}" in said.partition("Only in ")[0] and "★ new" in said
    assert "The best changed: A none; B int8@onnxruntime." in said


def test_three_runs_against_the_first() -> None:
    runs = [("a", sample.full()), ("b", edited(faster(1.2))), ("c", edited(faster(0.5)))]
    row = next(row for row in compare(runs)["rows"] if row["recipe"] == INT8)
    assert row["changes"] == [[], ["faster"], ["slower"]]
    assert len(row["cells"]) == 3 and row["cells"][0]["best"]


@pytest.mark.parametrize("make", [sample.full, sample.nothing_met, sample.minimal, sample.regression, dict])
@pytest.mark.parametrize("width", [None, 60])
def test_every_pair_of_samples_can_be_shown(make: Any, width: int | None) -> None:
    for runs in ([("a", make()), ("b", sample.full())], [("a", sample.full()), ("b", make())]):
        made = text(runs, width)
        assert made.startswith("A: a: ") and (width is None or max(map(len, made.splitlines())) <= width)


def test_keys_that_miss_are_no_crash() -> None:
    for key in sample.full()["trials"][0]:
        cut = copy.deepcopy(sample.full())
        for entry in cut["trials"]:
            entry.pop(key, None)
        assert text([("a", sample.full()), ("b", cut)])


def test_markdown_is_a_table_and_text_stays_text() -> None:
    for result in (sample.full(), sample.hostile("a|b <img src=x> @you")):
        lines = [
            line for line in markdown([("a|b", result), ("b", sample.full())]).splitlines() if line[:1] == "|"
        ]
        assert {line.replace("\\|", "").count("|") for line in lines} == {8} and len(lines) > 4


def test_on_narrow_terminals_changes_stand_behind_their_numbers() -> None:
    lines = text([("a", sample.full()), ("b", edited(faster(1.2)))], 80).splitlines()
    at = lines.index(INT8)
    assert "faster" not in " ".join(lines[at + 1 : at + 3]) and "· faster" in " ".join(lines[at + 3 : at + 5])
