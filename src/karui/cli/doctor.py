"""Say what this machine, or another one, can run: runtimes, instruction sets, noise, what to install."""

from __future__ import annotations

import argparse
import json
from typing import Any

from karui.cli.options import declare_json, declare_on


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
        "techniques": techniques.names(),
        "warnings": host.warnings(machine),
    }


def here(name: str) -> str:
    """What a runtime that lacks nothing does on this machine."""
    from karui import runtimes

    runtime = runtimes.find(name)()
    instead = runtime.stands_in()
    return f"{runtime.verified_as()} here: {instead}" if instead else "ready"
