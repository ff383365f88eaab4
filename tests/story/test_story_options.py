"""Every option that a command takes is heard by the run behind it."""

from __future__ import annotations

import argparse
from dataclasses import fields

from karui.cli import demo, optimize
from karui.cli.options import budget_of, settings_of, target_of
from karui.optimize import Settings


def test_a_run_hears_every_option_of_optimize_and_a_resumed_one_again():
    parser = argparse.ArgumentParser()
    optimize.declare(parser)
    declared = set(vars(parser.parse_args(["task.py"])))
    assert declared - {"out", "json", "run"} == set(optimize.SAVED)


def test_what_the_demo_does_not_say_is_as_optimize_has_it():
    options = demo.options_of(batch=1, threads=1)
    said = settings_of(options, "karui demo")
    assert said.recipes == demo.RECIPES
    default = {field.name: field.default for field in fields(Settings)}
    assert (said.search, said.stop_at) == (default["search"], default["stop_at"])
    assert target_of(options).name == "cpu"
    assert budget_of(options).max_drop == 1.0
