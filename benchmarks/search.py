"""The search beside exhaustive enumeration, on spaces of recipes that were measured whole.

    python -m benchmarks.search --measure mnist lstm encoder   # ten minutes each, on a quiet machine
    python -m benchmarks.search > benchmarks/results/search.md

What was measured lies in benchmarks/results/search_NAME.json. The second line replays searches: each gets a
quarter of the space's evaluations, its first recipes included, and is told of each what was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the sampler's matrices are small

from benchmarks.networks import tasks

import karui
from karui import journal
from karui.bench.rounds import Pace
from karui.measurement import Trial
from karui.optimize import Settings
from karui.optimize.crew import Help
from karui.optimize.plan import Composed, Plan, allowed_points
from karui.optimize.prepare import prepare
from karui.optimize.record import journal_json, read_trial
from karui.recipe import Recipe, parse_recipe
from karui.search.enumerate import Aim
from karui.space import Axis, Point, Space

RESULTS = Path(__file__).parent / "results"
RUNS = Path("karui-runs")
MACS = ("0.75", "0.5", "0.35", "0.25", "0.125")
CHANNELS = Axis("channels", ("", *(f"prune_channels:macs={m},multiple_of=8" for m in MACS)), ordered=True)
ROUNDED = Axis("rounding", ("", "round_weights:method=gptq"))
ZEROS = Axis("weights", ("", "prune_weights:sparsity=0.5", "prune_weights:sparsity=0.8"), ordered=True)
PRECISIONS = ("fp32", "int8", "int8_dynamic", "bf16")
RUNTIMES = ("torch_eager", "torchscript", "onnxruntime", "openvino")
SPACES = {
    "mnist": Space((CHANNELS, ROUNDED), PRECISIONS, RUNTIMES),
    "lstm": Space((CHANNELS, ZEROS), PRECISIONS, RUNTIMES),
    "encoder": Space((CHANNELS, ROUNDED), PRECISIONS, RUNTIMES),
}
FIRST = (*(f"fp32@{name}" for name in RUNTIMES), "int8@onnxruntime", "int8@openvino")
PACE = Pace(least=10, most=30, seconds=1.5)
MAX_DROP = 1.0
SHARE, NEAR = 0.25, 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs="+", default=[], choices=list(SPACES))
    parser.add_argument("--few", action="store_true", help="only a corner of each space, to try this script")
    parser.add_argument("--jobs", type=int, default=0, help="processes that build, as in karui optimize")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rows", type=Path, default=RESULTS)
    args = parser.parse_args()
    for name in args.measure:
        measure(name, args.rows, args.jobs, few=args.few)
    if not args.measure:
        print("\n".join(table([name for name in SPACES if rows_file(args.rows, name).exists()], args)))


def rows_file(folder: Path, name: str) -> Path:
    return folder / f"search_{name}.json"


def corner(space: Space) -> Space:
    steps = tuple(dataclasses.replace(axis, choices=axis.choices[:2]) for axis in space.steps)
    return dataclasses.replace(space, steps=steps, runtimes=space.runtimes[2:3])


def measure(name: str, folder: Path, jobs: int, *, few: bool) -> None:
    """Every recipe of the space that can be built, once; a run that was interrupted goes on."""
    space = corner(SPACES[name]) if few else SPACES[name]
    task, target = tasks.task(name), karui.Target("cpu")
    budget, home = karui.Budget(max_drop=MAX_DROP), RUNS / f"search_{name}"
    job = prepare(task, target, budget, home)
    allowed = allowed_points(job, space)
    settings = Settings(
        recipes=tuple(map(str, allowed.values())), mixed=0, pace=PACE, final=PACE, help=Help(jobs)
    )
    result = karui.optimize(task, target, budget=budget, out=home, settings=settings)
    events = [event for event in journal.read(home) if event["event"] == "trial"]
    trials = [lean(read_trial(event["trial"])) for event in events]
    facts = {
        "host": result.facts["host"],
        "space": dataclasses.asdict(space),
        "allowed": [[list(point), str(recipe)] for point, recipe in allowed.items()],
        "drop": job.allowed,
        "rows": [journal_json(trial) for trial in trials],
    }
    rows_file(folder, name).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    shutil.rmtree(home / "model", ignore_errors=True)


def lean(trial: Trial) -> Trial:
    """Without raw samples and the accounts of layers."""
    found = trial.measurement
    if found is None:
        return trial
    timing = found.timing and dataclasses.replace(found.timing, samples_s=(), rounds_s=())
    quality = found.quality and dataclasses.replace(found.quality, per_class=())
    verification = dataclasses.replace(found.verification, checks=())
    less = dataclasses.replace(found, timing=timing, quality=quality, verification=verification, executed={})
    return dataclasses.replace(trial, measurement=less)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A space with what every recipe of it came to."""

    space: Space
    allowed: dict[Point, Recipe]
    drop: float
    rows: dict[str, Trial]

    @property
    def evaluations(self) -> int:
        return math.floor(SHARE * len(self.allowed))


def read(path: Path) -> Measured:
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    space = facts["space"]
    axes = [Axis(axis["name"], tuple(axis["choices"]), axis["ordered"]) for axis in space["steps"]]
    return Measured(
        Space(tuple(axes), tuple(space["precisions"]), tuple(space["runtimes"])),
        {tuple(point): parse_recipe(text) for point, text in facts["allowed"]},
        facts["drop"],
        {row["recipe"]: read_trial(row) for row in facts["rows"]},
    )


def plan_of(measured: Measured, seed: int, at_once: int = 1) -> Plan:
    """What a run with the first recipes and a search would do, in a quarter of the evaluations."""
    names = {str(recipe): recipe for recipe in measured.allowed.values()}
    first = [names[text] for text in FIRST if text in names]
    aim = Aim(measured.drop, seed=seed)
    composed = Composed(measured.space, measured.allowed, aim, measured.evaluations - len(first))
    composed.at_once = at_once
    return Plan(first, named=False, mixed=0, composed=composed)


def replay(measured: Measured, seed: int, at_once: int = 1) -> list[Trial]:
    plan, trials = plan_of(measured, seed, at_once), list[Trial]()
    while (recipe := plan.next(trials)) is not None:
        trials.append(measured.rows[str(recipe)])
    return trials


def speed(trials: Sequence[Trial]) -> float:
    """Of the fastest that is kept, over the original."""
    found = [
        t.measurement.speedup.ratio for t in trials if t.kept and t.measurement and t.measurement.speedup
    ]
    return max(found, default=1.0)


def at_random(measured: Measured, count: int, within: float) -> float:
    """The chance that ``count`` recipes drawn blindly hold one that is kept and this fast."""
    good = sum(speed([trial]) >= within for trial in measured.rows.values())
    total = len(measured.rows)
    return 1 - math.comb(total - good, count) / math.comb(total, count)


def table(names: Sequence[str], args: argparse.Namespace) -> list[str]:
    head = "space | recipes | evaluations | best of all | its recipe | proposed | found, median | worst"
    head += " | within 3 % | blind drawing"
    lines = ["# A search in a quarter of the evaluations, beside all of them", ""]
    lines += [
        f"`python -m benchmarks.search`: {args.seeds} searches with different seeds on each measured space;",
        f"at most {MAX_DROP:g} point lost; speeds against eager FP32. Blind drawing: the chance that as many",
        "recipes drawn at random hold one within 3 % of the best.",
        "",
        f"| {head} |",
        "|---" * len(head.split("|")) + "|",
    ]
    for name in names:
        measured = read(rows_file(args.rows, name))
        best = speed(list(measured.rows.values()))
        recipe = next(text for text, trial in measured.rows.items() if speed([trial]) == best and trial.kept)
        blind = at_random(measured, measured.evaluations, best * (1 - NEAR))
        for at_once in (1, 4):
            found = [speed(replay(measured, seed, at_once)) / best for seed in range(args.seeds)]
            near = sum(share >= 1 - NEAR for share in found)
            row = [name, len(measured.allowed), measured.evaluations, f"{best:.3g}x", f"`{recipe}`"]
            row += [f"{at_once} at a time", f"{statistics.median(found):.1%}", f"{min(found):.1%}"]
            lines.append(f"| {' | '.join(map(str, row))} | {near} of {args.seeds} | {blind:.0%} |")
    return lines


if __name__ == "__main__":
    main()
