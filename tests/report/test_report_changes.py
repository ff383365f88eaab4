"""Steps in the report: what went, what stayed and why; whatever stands in the result is text, not markup."""

from __future__ import annotations

import sample

from karui.report.html import html
from karui.report.markdown import markdown
from karui.report.steps import steps
from karui.report.view import read

STEP = "prune_channels:macs=0.5"
ACCOUNT = {
    "touched": 4,
    "left": {"the model's output": 2, "layer_norm (norm, net.py:12): its <statistics>": 1},
    "macs": [4000.0, 1990.0],
    "parameters": [1000.0, 400.0],
    "kept": {"conv1.weight[0]": "8 of 16", "conv2.weight[0]": "24 of 32"},
    "sensitivity": {"conv1.weight[0]": "0.00:0 0.50:0.01 1.00:0.04"},
    "latency": {"predicted": 0.48, "share": 0.47, "low": 0.462, "high": 0.481, "looks": 2},
    "stairs": {"8": 0.31},
    "form": "graph",
    "damage": 0.012,
    "cut_error": 2e-7,
    "curve": {"0.437": 0.5, "0.200": 2.25},
    "stopped": "round 3 changed 9 % of the <answers>",
}


def narrowed():
    """The best trial of the full sample, and FP32 in its runtime with the same steps."""
    made = sample.full()
    best = next(trial for trial in made["trials"] if trial["id"] == made["best"])
    best["recipe"] = f"{STEP} + int8@onnxruntime"
    best["executed"] = {"precision": "int8", "detail": "QGemm x1", "steps": {STEP: ACCOUNT}}
    middle = next(trial for trial in made["trials"] if trial["id"] == "onnxruntime-fp16")
    middle |= {"recipe": f"{STEP} + fp32@onnxruntime", "precision": "fp32"}
    return made


def test_the_page_says_what_was_changed():
    text = html(narrowed())
    assert "What was changed in the network" in text
    assert "8 of 16" in text and "width:50%" in text and "width:75%" in text
    assert "1/2.01" in text and "1/2.50" in text
    assert "the exported graph, rewritten" in text
    assert "its &lt;statistics&gt;" in text and "<statistics>" not in text
    assert "What was changed" not in html(sample.full())


def test_a_training_tells_its_losses_and_what_did_not_go_as_planned():
    made = narrowed()
    best = next(trial for trial in made["trials"] if trial["id"] == made["best"])
    account = {"touched": 3, "left": {}, "steps": 1200, "loss": [0.51234, 0.0712], "distill": 1.0}
    best["executed"]["steps"]["finetune"] = account
    assert "1,200 steps from the teacher&#x27;s answers: loss 0.512 → 0.0712" in html(made)
    account |= {"distill": 0.5, "stopped": True, "held_out": [0.6, 0.2], "overflows": 3}
    text = html(made)
    assert "1,200 steps from both, stopped early" in text and "0.6 → 0.2" in text
    assert "overflows in half precision</dt><dd>3<" in text


def test_curves_of_sensitivity_are_drawn_on_one_scale():
    text = html(narrowed())
    assert '<polyline points="0.0,19.0 50.0,14.5 100.0,1.0"/>' in text
    assert "50% gone: 0.01, 100% gone: 0.04" in text
    assert "at most 0.04" in text


def test_a_latency_is_told_as_predicted_and_as_timed():
    text = html(narrowed())
    assert "48.0% predicted, 47.0% timed [46.2%, 48.1%]" in text
    assert "of 8 +31%" in text


def test_pruning_in_rounds_is_told_and_drawn():
    text = html(narrowed())
    assert "43.7% left: 0.50 % → 20.0% left: 2.25 %; round 3 changed 9 % of the &lt;answers&gt;" in text
    assert "56% gone: 0.5, 80% gone: 2.2" in text


def test_the_table_says_by_how_much_it_is_narrower():
    assert "MACs 1/2.01, parameters 1/2.50; QGemm x1" in html(narrowed())
    assert f"{STEP} + int8@onnxruntime" in markdown(narrowed())


def test_the_waterfall_has_a_bar_for_the_steps_and_one_for_the_precision():
    labels = [step.label for step in steps(read(narrowed()))]
    assert f"steps: {STEP} + fp32" in labels
    assert "numerics: int8" in labels


def test_an_account_of_odd_form_does_no_harm():
    made = narrowed()
    best = next(trial for trial in made["trials"] if trial["id"] == made["best"])
    for steps_found in (
        None,
        [],
        {STEP: None},
        {STEP: {"kept": {"a": "x of y"}, "macs": [1, 0], "left": 3, "sensitivity": [1], "latency": 2}},
        {STEP: {"curve": {"x": 1, "0.5": "y"}, "stopped": 3}},
        {STEP: {"kept": {"a": "1 of 2"}, "sensitivity": {"a": "0:x 1:2", "b": 4}, "stairs": {"8": "x"}}},
    ):
        best["executed"]["steps"] = steps_found
        assert html(made)
