"""Say what this machine, or another one, can run: runtimes, instruction sets, noise, what to install."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from karui.cli.options import declare_json, declare_on

if TYPE_CHECKING:
    from karui.recipe import Recipe

LACKS = "not installed: "  # how a runtime's state begins where a command would bring it
EXTRA = re.compile(r"pip install 'karui\[([\w,]+)\]'")


def declare(parser: argparse.ArgumentParser) -> None:
    declare_on(parser)
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    facts = examine(args.on)
    if args.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    machine = facts["host"]
    flags = ", ".join(machine["flags"]) or "no vector flags known"
    print(f"{machine['cpu']}, {machine['cores']} cores, {flags}")
    for name, state in facts["runtimes"].items():
        print(f"  {name:<16} {state}")
    print("targets: " + ", ".join(facts["targets"]))
    for name, target in facts["by_target"].items():
        print(f"  {name:<16} {target_words(target)}")
    print("techniques: " + ", ".join(facts["techniques"]))
    for warning in facts["warnings"]:
        print(f"! {warning}")
    return 0


def examine(on: str = "") -> dict[str, Any]:
    """Runtimes with their state, targets, host facts and warnings; of the machine at ``on``, if given."""
    from karui import host, presets, runtimes, techniques
    from karui.bench.remote import machine_at

    with machine_at(on) as there:
        machine = there.facts()
        state = (lambda name: "ready") if on else here
        states = {name: there.lacks(name) or state(name) for name in runtimes.names()}
    return {
        "schema": "karui.doctor/1",
        "on": on,
        "host": machine,
        "runtimes": states,
        "targets": presets.names(),
        "by_target": {name: by_target(name, states) for name in presets.names()},
        "techniques": techniques.names(),
        "warnings": host.warnings(machine),
    }


def here(name: str) -> str:
    """What a runtime that lacks nothing does on this machine."""
    from karui import runtimes

    runtime = runtimes.find(name)()
    instead = runtime.stands_in()
    return f"{runtime.verified_as()} here: {instead}" if instead else "ready"


def by_target(name: str, states: Mapping[str, str]) -> dict[str, Any]:
    """The runtimes of a target's preset by what they can do here, and the command that adds the missing."""
    from karui import presets
    from karui.budget import Budget

    listed = presets.recipes(name, Budget())
    used = sorted({recipe.runtime.name for recipe in listed})
    lacking = [one for one in used if states[one].startswith(LACKS)]
    mine = {one: [recipe for recipe in listed if recipe.runtime.name == one] for one in used}
    found = {
        one: states[one] if states[one] != "ready" else all_refused(mine[one])
        for one in used
        if one not in lacking
    }
    return {
        "ready": [one for one, why in found.items() if not why],
        "otherwise": {one: why for one, why in found.items() if why},
        "lacking": lacking,
        "fix": remedy([states[one].removeprefix(LACKS) for one in lacking]),
    }


def all_refused(recipes: Sequence[Recipe]) -> str:
    """Why a runtime refuses whatever a target would have it run; empty where it takes something."""
    from karui import host, runtimes
    from karui.runtimes import Ask

    flags = tuple(sorted(host.flags()))
    reasons = [runtimes.load(recipe.runtime).refuses(Ask(recipe.numerics, flags=flags)) for recipe in recipes]
    return (reasons[0] or "") if all(reasons) else ""


def remedy(commands: Sequence[str]) -> str:
    """One command for several: extras of karui go into one call of pip."""
    extras = [found[1] for command in commands if (found := EXTRA.fullmatch(command))]
    others = [command for command in commands if not EXTRA.fullmatch(command)]
    pip = [f"pip install 'karui[{','.join(extras)}]'"] if extras else []
    return " && ".join(dict.fromkeys(pip + others))


def target_words(target: Mapping[str, Any]) -> str:
    parts = [", ".join(target["ready"]) or "nothing to run"]
    if target["otherwise"]:
        whys = (f"{name} ({why})" for name, why in target["otherwise"].items())
        parts.append(f"not run here: {', '.join(whys)}")
    if target["lacking"]:
        parts.append(f"lacking {', '.join(target['lacking'])}: {target['fix']}")
    return "; ".join(parts)
