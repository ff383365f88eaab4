"""Say what this machine can run: runtimes, instruction sets, what makes timings noisy, what to install."""

from __future__ import annotations

import argparse
import json
from typing import Any

from karui.cli.options import declare_json


def declare(parser: argparse.ArgumentParser) -> None:
    declare_json(parser)


def run(args: argparse.Namespace) -> int:
    facts = examine()
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


def examine() -> dict[str, Any]:
    """Runtimes with their state, targets, host facts and warnings."""
    from karui import host, presets, runtimes, techniques

    machine = host.facts()
    return {
        "schema": "karui.doctor/1",
        "host": machine,
        "runtimes": {name: runtimes.lacks(name) or "ready" for name in runtimes.names()},
        "targets": presets.names(),
        "techniques": techniques.names(),
        "warnings": host.warnings(machine),
    }
