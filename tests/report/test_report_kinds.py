"""Trade-offs by kind: which recipe is of which kind, which row stands for it, and why there is none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import sample

from karui import techniques
from karui.report.html import html
from karui.report.kinds import HELP, KINDS, STEPS, kind_of, needs, table
from karui.report.markdown import kinds, markdown
from karui.report.tradeoffs import text

EXAMPLES = {
    "bf16@openvino": "half",
    "fp16@torch_eager": "half",
    "int8@openvino:quantizer=nncf": "int8",
    "round_weights:method=gptq + int8[head=fp32]@onnxruntime": "int8",
    "int8_dynamic@onnxruntime": "int8_dynamic",
    "int8_weights@coreml": "int8_weights",
    "int4_weights@onnxruntime:group=32": "int4_weights",
    "quantize_aware:steps=100 + int8@onnxruntime": "quantize_aware",
    "prune_channels:macs=0.5 + finetune:steps=60 + fp32@openvino": "structured",
    "prune_weights:sparsity=0.8 + fp32@torch_eager:sparse=true": "unstructured",
    'iterative:prune="prune_channels:ratio=0.5",rounds=2 + fp32@onnxruntime': "structured",
    "iterative + fp32@onnxruntime": "unstructured",
    "distill:width=0.5 + fp32@onnxruntime": "distillation",
    "fp32@torch_compile:mode=max-autotune": "compile",
    "fp32@aot_inductor": "runtime",
    "prune_channels:macs=0.5 + int8@onnxruntime": "several",
    "distill + quantize_aware + int8@onnxruntime": "several",
    "fold_norm + fp32@onnxruntime": "other",
    "of_another_package + fp32@onnxruntime": "other",
    "not a recipe": "other",
}
TAKES = {
    "fp32@onnxruntime": "no data",
    "int8_dynamic@onnxruntime": "no data",
    "equalize + fp16@openvino": "no data",
    "int8@onnxruntime": "calibration data",
    "prune_channels:macs=0.5 + fp32@onnxruntime": "calibration data",
    "prune_channels:macs=0.5 + finetune + fp32@onnxruntime": "training",
    "iterative + fp32@onnxruntime": "training",
    "quantize_aware + int8@onnxruntime": "training",
}


@pytest.mark.gate
@pytest.mark.parametrize("recipe", EXAMPLES)
def test_a_recipe_is_of_its_kind(recipe: str) -> None:
    assert kind_of(recipe) == EXAMPLES[recipe]


@pytest.mark.gate
def test_every_technique_of_the_package_is_known_here() -> None:
    assert set(techniques.names()) <= {*STEPS, *HELP}
    assert set(EXAMPLES.values()) | {"original"} == set(KINDS)


@pytest.mark.parametrize("recipe", TAKES)
def test_what_a_recipe_takes(recipe: str) -> None:
    assert needs(recipe) == TAKES[recipe]


def rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["kind"]: row for row in table(result)["rows"]}


@pytest.mark.gate
def test_the_row_of_a_kind_is_the_one_chosen_else_the_best_kept_else_the_best_measured() -> None:
    found = rows(sample.full())
    recipes = {kind: row["recipe"] for kind, row in found.items()}
    assert recipes["original"] == "fp32@torch_eager" and recipes["runtime"] == "fp32@onnxruntime"
    assert recipes["int8"] == "int8@onnxruntime" and found["int8"]["verdict"] == "best"
    assert recipes["half"] == "fp16@onnxruntime" and found["half"]["verdict"] == "slower"
    assert found["int8"]["tried"] == 4 and found["int8"]["size_ratio"] == pytest.approx(88 / 311)
    assert found["int8"]["speedup"] == sample.full()["trials"][9]["speedup"]


def test_by_the_objective_of_the_run() -> None:
    result = sample.full()
    result.update(best=None)
    result["budget"]["objective"] = "size"
    assert rows(result)["runtime"]["recipe"] == "fp32@onnxruntime"
    result["trials"][3]["size_bytes"] = 1000
    assert rows(result)["runtime"]["recipe"] == "fp32@torchscript"


@pytest.mark.gate
def test_a_kind_without_a_row_says_why() -> None:
    result = sample.full()
    result["trials"] = [
        t for t in result["trials"] if t["recipe"] not in ("bf16@torch_compile", "fp16@onnxruntime")
    ]
    found = rows(result)
    assert found["half"]["reason"].startswith("bf16@openvino failed: the worker was killed by signal 11")
    result["trials"].insert(0, {"id": "x", "recipe": "bf16@torch_eager", "status": None})
    assert rows(result)["half"]["reason"].startswith("bf16@openvino failed")
    result["trials"].pop(0)
    result["trials"] = [t for t in result["trials"] if t["precision"] != "bf16"]
    assert rows(result)["half"]["reason"].startswith("fp16@torch_eager: this CPU has no FP16 arithmetic")
    assert found["distillation"]["reason"] == "no recipe of this kind was tried"
    assert "several" not in found and "int8_weights" not in found and "int4_weights" not in found
    assert "– Distillation" not in text(sample.minimal()).splitlines()[0]


def test_steps_made_for_an_earlier_recipe_are_marked() -> None:
    result = sample.full()
    for i, recipe in enumerate(
        ("prune_channels:macs=0.5 + bf16@openvino", "prune_channels:macs=0.5 + fp32@openvino")
    ):
        made = copy.deepcopy(result["trials"][10])
        result["trials"].append(made | {"id": f"made-{i}", "recipe": recipe})
    found = rows(result)
    assert not found["several"]["steps_shared"] and found["structured"]["steps_shared"]
    assert "1.30 s*" in text(result) and "* Its steps were made for an earlier recipe" in text(result)
    assert "*" not in text(sample.full())


def test_what_may_not_be_shipped_is_said() -> None:
    assert "? int8_dynamic@onnxruntime: undecided, loses 0.24 points" in text(sample.full())


@pytest.mark.parametrize("make", [sample.full, sample.nothing_met, sample.minimal, sample.regression, dict])
@pytest.mark.parametrize("width", [None, 60])
def test_every_sample_has_its_table(make: Any, width: int | None) -> None:
    made = text(make(), width)
    assert all(
        title in made
        for kind, title in KINDS.items()
        if kind not in ("int8_weights", "int4_weights", "several", "other")
    )
    assert width is None or max(map(len, made.splitlines())) <= width


def test_plain_columns_line_up() -> None:
    lines = text(sample.full()).splitlines()[2:13]
    assert len({line.index("x  ") for line in lines if "x  " in line}) == 1


def test_markdown_is_one_table_and_hostile_text_stays_text() -> None:
    for result in (sample.full(), sample.hostile("a|b <img src=x> @you")):
        lines = [line for line in kinds(result).splitlines() if line.startswith("|")]
        assert {line.replace("\\|", "").count("|") for line in lines} == {8}
    assert "### Trade-offs by kind" in markdown(sample.full())
    assert "### Trade-offs" not in markdown(sample.minimal())


def test_the_page_has_the_section_where_there_is_something_to_trade_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("karui.report.html.draw", lambda run: ({}, ""))
    made = html(sample.full()).partition('<section id="kinds">')[2].partition("</section>")[0]
    assert made.count("<tr") == 11 and "<code>int8@onnxruntime</code>" in made
    assert '<section id="kinds">' not in html(sample.minimal())
    hostile = (
        html(sample.hostile("<img src=x>")).partition('<section id="kinds">')[2].partition("</section>")[0]
    )
    assert "<img" not in hostile
