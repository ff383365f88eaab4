from __future__ import annotations

import pytest
import sample

pytest.importorskip("matplotlib")

from karui.report import charts  # noqa: E402
from karui.report.scatter import budget_level, dots, ticks  # noqa: E402
from karui.report.steps import steps  # noqa: E402
from karui.report.svg import fit  # noqa: E402
from karui.report.view import read  # noqa: E402


def test_steps_go_from_eager_to_the_runtime_to_the_precision() -> None:
    found = steps(read(sample.full()))
    assert [step.label for step in found] == [
        "fp32@torch_eager", "runtime: onnxruntime", "numerics: int8", "int8@onnxruntime",
    ]  # fmt: skip
    first, runtime, numerics, last = found
    assert runtime.before_s == first.after_s and numerics.before_s == runtime.after_s
    assert last.after_s == pytest.approx(numerics.after_s, rel=0.01)
    assert runtime.speed and runtime.speed.ratio == pytest.approx(2.02 / 0.396)


def test_steps_without_a_same_runtime_baseline_are_one_step() -> None:
    result = sample.full()
    result["trials"][9]["speedup_same_runtime"] = None
    assert [step.label for step in steps(read(result))][1:-1] == ["onnxruntime and int8"]


def test_nothing_to_attribute_when_the_original_is_best() -> None:
    result = sample.full()
    result["best"] = result["baseline"]
    assert steps(read(result)) == []


def test_dots_carry_both_intervals() -> None:
    run = read(sample.full())
    best = next(dot for dot in dots(run) if dot.tone == "best")
    assert best.x_low < best.x < best.x_high
    assert (best.y_low, best.y, best.y_high) == pytest.approx((91.074, 91.29, 91.506))
    assert budget_level(run) == pytest.approx(90.91)


def test_a_broken_candidate_stands_at_the_edge_and_says_its_score() -> None:
    below = [dot for dot in dots(read(sample.full())) if dot.below]
    assert [dot.name for dot in below] == ["int8@aot_inductor (89.06)"]


def test_area_is_proportional_to_size() -> None:
    found = {dot.name: dot for dot in dots(read(sample.full()))}
    ratio = found["fp32@onnxruntime"].area / found["int8@onnxruntime"].area
    assert ratio == pytest.approx(309 / 88, rel=0.01)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.15, 6) == pytest.approx([0.2, 0.5, 1, 2, 5])


def test_pictures_without_data_are_left_out() -> None:
    assert charts.draw(read(sample.minimal())) == {}
    result = sample.full()
    for entry in result["trials"]:
        entry["samples_s"] = None
    assert set(charts.draw(read(result))) == {"pareto", "steps", "classes"}


def test_pointing_at_a_dot_names_it() -> None:
    wide, _ = charts.draw(read(sample.full()))["pareto"]
    assert "<title>int8@onnxruntime · 0.218 ms · 88.0 KiB · top-1 91.29 % −0.12" in wide


def test_words_are_set_in_the_page_font() -> None:
    now, older = "font-size: 12px; font-family: 'DejaVu Sans', serif;", "font: 700 12px 'DejaVu Sans', serif;"
    for style in (now, older):
        made = fit(f'<svg><text style="{style} text-anchor: end">x</text></svg>', "p", "", {})
        assert "DejaVu" not in made and "12px" in made and "text-anchor: end" in made


def test_fitting_an_svg_touches_tags_only() -> None:
    drawn = '<svg width="9pt"><g id="a"><use href="#b" fill="#010101"/><text>id="c" #010101</text></g></svg>'
    made = fit(drawn, "p", "T & U", {"a": "<tip>"})
    assert '<g id="p-a"><title>&lt;tip&gt;</title><use href="#p-b" fill="var(--ink)"/>' in made
    assert '<text>id="c" #010101</text>' in made and "width" not in made and "T &amp; U" in made
