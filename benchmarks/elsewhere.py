"""The same files timed here and on the machine at an address, in the same interleaved rounds.

    python -m benchmarks.elsewhere ssh://127.0.0.1:2222/path/to/karui > benchmarks/results/elsewhere.md

Over the loopback both are one machine, so that whatever the connection adds would show.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from karui import api
from karui.artifact import load_artifact
from karui.bench.candidate import Candidate, Opened
from karui.bench.machine import Conditions
from karui.bench.remote import machine_at
from karui.bench.rounds import Pace, session
from karui.demo import task
from karui.measurement import Ratio
from karui.optimize import Settings
from karui.process import Limits

RECIPES = ("fp32@torch_eager", "fp32@onnxruntime", "int8@onnxruntime", "fp32@openvino", "int8@openvino")
PACE = Pace(least=30, most=100, seconds=40.0, openings=5, most_openings=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, machine_at(args.address) as machine, Opened() as opened:
        home = Path(name) / "run"
        quick = Settings(recipes=RECIPES, pace=Pace(5, 6, 0.5), final=Pace(5, 6, 0.5))
        result = api.optimize(task(), out=home, max_drop=100, settings=quick)
        folders = {t["recipe"]: home / t["artifact"] for t in result.facts["trials"] if t["artifact"]}
        where = {
            "here": Conditions(limits=Limits(120)),
            "there": Conditions(limits=Limits(120), machine=machine),
        }

        def fresh():
            made = {
                f"{recipe} {place}": Candidate(
                    load_artifact(folder), home / "data", Path(name) / f"{i}-{place}", conditions
                )
                for i, (recipe, folder) in enumerate(folders.items())
                for place, conditions in where.items()
            }
            return opened.again(made)

        pairs = [(f"{RECIPES[0]} {place}", f"{r} {place}") for r in folders for place in where][2:]
        rounds = session(fresh, pairs, PACE, seed=0)
        if rounds.failed:
            raise next(iter(rounds.failed.values()))
        report(machine.facts(), list(folders), rounds, args.address.partition(":")[0])


def report(host, recipes, rounds, kind: str) -> None:
    count = sum(len(blocks) for blocks in rounds.blocks_s[f"{recipes[0]} here"])
    openings = len(rounds.blocks_s[f"{recipes[0]} here"])
    print("# The same files timed here and through an agent\n")
    print(
        f"The network of the demo, batch 1, one thread; {host['cpu']}; {count} rounds in {openings} "
        f"openings, each with all files in both places. The other place is the same machine, over {kind} "
        "and the loopback.\n"
    )
    print("| candidate | vs eager, here | vs eager, there | there vs here, same file |")
    print("|---|--:|--:|--:|")
    for recipe in recipes:
        here, there = (
            words(rounds.ratio(f"{recipes[0]} {p}", f"{recipe} {p}", 0)) for p in ("here", "there")
        )
        same = rounds.ratio(f"{recipe} here", f"{recipe} there", 0)
        print(f"| `{recipe}` | {here} | {there} | {words(same)} {same.verdict} |")


def words(ratio: Ratio) -> str:
    return f"{ratio.ratio:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


if __name__ == "__main__":
    main()
