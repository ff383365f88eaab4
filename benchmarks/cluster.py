"""A search that builds on several nodes: how long it takes, and what it finds when one of them dies.

    python -m benchmarks.cluster --record                            # one builder, on a quiet machine
    python -m benchmarks.cluster --real                              # Ray nodes of one CPU on this machine
    python -m benchmarks.cluster > benchmarks/results/cluster.md

``--record`` keeps how long each trial of a search that trains took to build and to time, ``--real`` how long
whole searches took and what they found, both in benchmarks/results/cluster.json. The last prints them and
simulates clusters of other sizes: the run's own scheduling, on a clock of its own, with the recorded times.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's own switch: nodes listen on 127.0.0.1

from benchmarks.networks import tasks

import karui
from karui import journal
from karui.bench.rounds import Pace
from karui.measurement import Trial
from karui.optimize import Settings
from karui.optimize.crew import Crew, Help
from karui.optimize.engines import Engine, Finished, Share
from karui.optimize.made import Made
from karui.optimize.plan import Plan
from karui.optimize.record import read_trial
from karui.process import family
from karui.recipe import parse_recipe

ROWS = Path(__file__).parent / "results" / "cluster.json"
RUNS = Path("karui-runs")
SHORT = Pace(least=10, most=30, seconds=1.0)
NODES = (1, 2, 3)


def recipes(steps: int) -> tuple[str, ...]:
    """Trials that train, so that building takes most of the time."""
    shares = (0.75, 0.6, 0.5, 0.4, 0.3, 0.25)
    trained = [f"prune_channels:macs={m},multiple_of=8 + finetune:steps={steps}" for m in shares]
    return (
        "fp32@onnxruntime",
        *(f"{one} + {end}@onnxruntime" for one in trained for end in ("fp32", "int8")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--network", default="mnist")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--rows", type=Path, default=ROWS)
    args = parser.parse_args()
    found = json.loads(args.rows.read_text()) if args.rows.exists() else {}
    if args.record:
        found["recorded"] = recorded(args.network, args.steps)
    if args.real:
        found["real"] = [real(args.network, args.steps, nodes) for nodes in NODES]
        found["real"].append(real(args.network, args.steps, NODES[-1], kill=True))
    if args.record or args.real:
        args.rows.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else:
        print("\n".join(table(found)))


def run(name: str, steps: int, folder: Path, help: Help) -> tuple[dict[str, Any], float]:
    """The facts of a whole run, and the seconds from its start to its last trial's end."""
    shutil.rmtree(folder, ignore_errors=True)
    settings = Settings(recipes=recipes(steps), mixed=0, pace=SHORT, final=SHORT, help=help)
    start = time.monotonic()
    facts = karui.optimize(tasks.task(name), max_drop=1, out=folder, settings=settings).facts
    return dict(facts), round(time.monotonic() - start, 1)


def recorded(name: str, steps: int) -> dict[str, Any]:
    folder = RUNS / "cluster-recorded"
    run(name, steps, folder, Help(1, share=Share(1)))
    events = journal.read(folder)
    spans = {e["recipe"]: e["ended"] - e["began"] for e in events if e["event"] == "built"}
    trials = [event for event in events if event["event"] == "trial"]
    return {
        "network": name,
        "steps": steps,
        "rows": [
            {"recipe": e["trial"]["recipe"], "build_s": spans[e["trial"]["recipe"]], "time_s": e["seconds"]}
            for e in trials
        ],
    }


def real(name: str, steps: int, nodes: int, *, kill: bool = False) -> dict[str, Any]:
    """A run on a local cluster of ``nodes`` raylets with one CPU each. kill: one of them, in mid-build."""
    folder = RUNS / f"cluster-{nodes}{'-killed' if kill else ''}"
    shutil.rmtree(folder, ignore_errors=True)
    with cluster(nodes) as (address, raylets):
        killer = threading.Thread(target=kill_one, args=(raylets,))
        if kill:
            killer.start()
        facts, seconds = run(name, steps, folder, Help(ray=address))
        if kill:
            killer.join()
    lost = [event for event in journal.read(folder) if event["event"] == "lost"]
    kept = sorted(trial["id"] for trial in facts["trials"] if trial["status"] == "kept")
    return {
        "nodes": nodes,
        "killed": kill,
        "lost": len(lost),
        "seconds": seconds,
        "trials": len(facts["trials"]),
        "kept": kept,
        "best": next(t["recipe"] for t in facts["trials"] if t["id"] == facts["best"]),
    }


@contextmanager
def cluster(nodes: int) -> Iterator[tuple[str, list[int]]]:
    """Raylets of one CPU each on 127.0.0.1, beside a head on which nothing is built; the address, and the
    raylets' process ids.
    """
    from ray.cluster_utils import Cluster

    share = {"object_store_memory": 200 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=share | {"num_cpus": 0})
    try:
        yield made.address, [raylet_of(made.add_node(**share, num_cpus=1)) for _ in range(nodes)]
    finally:
        made.shutdown()


def raylet_of(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def kill_one(raylets: Sequence[int], patience_s: float = 600.0) -> None:
    """The first node whose builder builds, with all its processes. Ray writes into a process's title what it
    does.
    """
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        for raylet in raylets:
            node = family(raylet)
            if any(title(pid).startswith("ray::Remote.make") for pid in node):
                kill_all(node)
                return
        time.sleep(0.02)


def kill_all(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@final
class Simulated(Engine):
    """Hands that take the recorded seconds, on their own clock. lost: when, in seconds, which hand dies."""

    def __init__(
        self, size: int, build_s: Mapping[str, float], *, near: bool, lost: tuple[float, int] | None = None
    ) -> None:
        self.size, self.near, self.build_s, self.loss = size, near, build_s, lost
        self.hands, self.coming = set(range(size)), set[int]()
        self.now = 0.0
        self.due: dict[int, tuple[float, Sequence[str]]] = {}

    def start(self, hand: int, recipes: Sequence[str]) -> None:
        self.due[hand] = self.now + sum(self.build_s[recipe] for recipe in recipes), recipes

    def finished(self) -> Finished | None:
        hand = min(self.due, key=lambda hand: (self.due[hand][0], hand))
        if self.loss and self.loss[1] in self.due and self.loss[0] <= self.due[hand][0]:
            end, hand = self.loss
            self.loss = None
            self.hands.remove(hand)
            self.due.pop(hand)
            self.now = max(self.now, end)
            return Finished(hand, None, "killed")
        end, recipes = self.due.pop(hand)
        self.now = max(self.now, end)
        return Finished(hand, [Made(recipe) for recipe in recipes])

    def close(self) -> None:
        return


def simulated(
    plan: Plan, outcomes: Mapping[str, Trial], engine: Simulated, time_s: Mapping[str, float]
) -> list[Trial]:
    """What ``karui.optimize.try_all`` does, with ``engine``'s clock; it is left at the end of the run."""
    crew, trials = Crew(engine, lambda event: None, lambda text: None), list[Trial]()
    if plan.composed:
        plan.composed.at_once = crew.at_once
    while (recipe := plan.next(trials)) is not None:
        crew.made(recipe, plan.coming(trials))
        engine.now += time_s[str(recipe)]
        trials.append(outcomes[str(recipe)])
    return trials


def table(found: Mapping[str, Any]) -> list[str]:
    lines = ["# Builders on a cluster", "", "Printed by `python -m benchmarks.cluster`."]
    if "real" in found:
        lines += real_table(found["real"])
    if "recorded" in found:
        lines += simulated_table(found["recorded"])
    return lines


def real_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    first = rows[0]["seconds"]
    lines = [
        "",
        "## Ray nodes of one CPU each on this machine, whole runs",
        "",
        "| nodes | trials | seconds | faster than one | hands lost | best | kept as with one node |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        nodes = f"{row['nodes']}, one killed while it built" if row["killed"] else row["nodes"]
        same = "yes" if row["kept"] == rows[0]["kept"] else "no"
        figures = f"{row['seconds']:.0f} | {first / row['seconds']:.2f}x | {row['lost']}"
        lines.append(f"| {nodes} | {row['trials']} | {figures} | `{row['best']}` | {same} |")
    return lines


def simulated_table(recorded: Mapping[str, Any]) -> list[str]:
    rows = recorded["rows"]
    build_s = {row["recipe"]: row["build_s"] for row in rows}
    time_s = {row["recipe"]: row["time_s"] for row in rows}
    outcomes = {row["recipe"]: stand_in(row["recipe"]) for row in rows}
    lines = [
        "",
        f"## Simulated from the recorded times of {len(rows)} trials of `{recorded['network']}`",
        "",
        f"Building took one builder {sum(build_s.values()):.0f} s, timing {sum(time_s.values()):.0f} s.",
        "",
        "| builders | on the machine that times | elsewhere | elsewhere, one lost half-way |",
        "|---|---|---|---|",
    ]
    alone: dict[bool, float] = {}
    for size in (1, 2, 3, 4, 8):
        cells = []
        for near in (True, False):
            seconds = seconds_of(size, build_s, time_s, outcomes, near=near)
            alone.setdefault(near, seconds)
            cells.append(f"{seconds:.0f} s, {alone[near] / seconds:.2f}x")
        half = (seconds / 2, 0)
        less = seconds_of(size, build_s, time_s, outcomes, near=False, lost=half) if size > 1 else None
        cells.append(f"{less:.0f} s, {alone[False] / less:.2f}x" if less else "")
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return lines


def seconds_of(
    size: int,
    build_s: Mapping[str, float],
    time_s: Mapping[str, float],
    outcomes: Mapping[str, Trial],
    *,
    near: bool,
    lost: tuple[float, int] | None = None,
) -> float:
    engine = Simulated(size, build_s, near=near, lost=lost)
    plan = Plan([parse_recipe(text) for text in build_s], named=True, mixed=0, composed=None)
    assert len(simulated(plan, outcomes, engine, time_s)) == len(build_s)
    return engine.now


def stand_in(recipe: str) -> Trial:
    """A trial of which only its recipe matters: that of a list that is tried whole."""
    facts = {"id": recipe, "recipe": recipe, "runtime": "", "precision": "", "status": "kept", "reason": ""}
    return read_trial(facts | {"measurement": None})


if __name__ == "__main__":
    main()
