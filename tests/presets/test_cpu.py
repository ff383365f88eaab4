"""What the preset of a CPU offers: narrower networks are trained where that is possible and time allows."""

from __future__ import annotations

from karui import presets
from karui.budget import Budget
from karui.optimize import trains
from karui.task import Task


def trained(**budget) -> list[str]:
    found = presets.recipes("cpu", Budget(**budget), trains=True)
    return [str(recipe) for recipe in found if any(step.name == "finetune" for step in recipe.steps)]


def test_recovery_is_tried_behind_pruning_in_both_precisions_where_there_are_training_data():
    found = trained()
    assert (
        "prune_channels:macs=0.25,multiple_of=8 + finetune:steps=600,most_s=1200 + int8@onnxruntime" in found
    )
    assert {text.rpartition(" + ")[2].partition("@")[0] for text in found} == {"fp32", "int8"}
    plain = presets.recipes("cpu", Budget())
    assert not any(step.name == "finetune" for recipe in plain for step in recipe.steps)
    assert set(map(str, plain)) < set(map(str, presets.recipes("cpu", Budget(), trains=True)))


def test_a_training_takes_three_tenths_of_the_time_at_most():
    assert all("most_s=180 " in text for text in trained(time_s=600.0))
    assert all("most_s=1200 " in text for text in trained(time_s=1e6))


def test_a_task_trains_with_data_or_a_function_of_its_own():
    assert trains(Task(None, train=[])) and trains(Task(None, finetune=print)) and not trains(Task(None))


def test_where_the_time_is_known_it_also_trains_longer_and_goes_farther():
    longer = [text for text in trained(time_s=600.0) if "epochs=" in text]
    assert all("schedule=one_cycle" in text for text in longer)
    tens = [text for text in longer if "epochs=10," in text]
    assert {text.partition("macs=")[2].partition(",")[0] for text in tens} == {"0.25", "0.125", "0.0625"}
    assert len(longer) > len(tens) and all("epochs=4," in text for text in set(longer).difference(tens))
    assert not any("epochs=" in text for text in trained())
