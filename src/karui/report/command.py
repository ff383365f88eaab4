"""The call that made a run, with one thing changed."""

from __future__ import annotations

import shlex

from karui.report import fields
from karui.report.view import Run

# what each option is called from Python; Settings stands in karui.optimize
PYTHON = {
    "--max-drop": "karui.optimize(task, max_drop={})",
    "--max-size": "karui.optimize(task, budget=karui.Budget(max_size_bytes={}))",
    "--confidence": "karui.optimize(task, budget=karui.Budget(confidence={}))",
    "--threads": "karui.optimize(task, karui.Target(threads={}))",
    "--search": "karui.optimize(task, settings=Settings(search={}))",
    "--time": "karui.optimize(task, budget=karui.Budget(time_s={}))",
    "--pace": "",
    "--train": "",
    "--select": "",
    "--confirm": "",
    "--recipe": "karui.optimize(task, settings=Settings(recipes=({!r},)))",
}
BENCH = ("--threads", "--pace", "--time", "--recipe")  # no data, no budget: these are left
ALONE = ("--out", "--json")  # of the old run: a new one gets a folder of its own


def words_of(run: Run) -> list[str]:
    """The recorded call; empty where it was made from Python, or cannot be read."""
    try:
        found = shlex.split(fields.text(run.data, "command"))
    except ValueError:
        return []
    if found[:2] == ["karui", "demo"]:
        return ["karui", "optimize", "karui.demo:task", "--pace", "quick", *found[2:]]
    return found if found[:1] == ["karui"] and found[1:2] in (["optimize"], ["bench"]) else []


def is_bench(run: Run) -> bool:
    """A run without a budget, which nothing is searched for."""
    return words_of(run)[1:2] == ["bench"]


def has(run: Run, option: str) -> bool:
    """Whether the call gave this option."""
    return any(word == option or word.startswith(f"{option}=") for word in words_of(run))


def again(run: Run, option: str, value: str) -> str:
    """The call with the option set; from Python, the part that matters; empty where it has no such option."""
    words = words_of(run)
    if not words:
        return PYTHON[option].format(value)
    if words[1] == "bench" and option not in BENCH:
        return ""
    return shlex.join([*without(words, (option, *ALONE)), option, value])


def without(words: list[str], options: tuple[str, ...]) -> list[str]:
    """The words but these options with their values."""
    left, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = word != "--json"
        elif word.partition("=")[0] not in options:
            left.append(word)
    return left
