"""Static INT8 from karui's table beside each runtime's own: parity, coverage, speed, accuracy, size.

    python -m benchmarks.int8 > benchmarks/results/int8.md

For every network: one table of ranges, three runtimes. Agreement and largest difference are against the
fake-quant reference on 2,000 test samples; a step of the output (LSB) is a 255th of its range there. Speed is
the peer's latency over karui's, in the same interleaved session, with its 95 % interval; above 1 karui is
faster. Needs ``make data`` and the checkpoints (``python -m benchmarks.networks.train``).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.networks import tasks

import karui
from karui import runtimes
from karui.artifact import Artifact, load_artifact
from karui.bench.compare import compare
from karui.bench.machine import Conditions
from karui.bench.rounds import Pace
from karui.data import open_arrays
from karui.errors import KaruiError
from karui.optimize import Settings
from karui.recipe import parse_recipe

NETWORKS = ("mnist", "fashion", "deep", "mobile", "encoder")
PEERS = {
    "onnxruntime": "int8@onnxruntime:quantizer=onnxruntime",
    "openvino": "int8@openvino:quantizer=nncf",
    "aot_inductor": "int8@aot_inductor:quantizer=torchao",
}
COLUMNS = (
    "network", "runtime", "agreement", "largest difference (LSB)", "MACs in INT8", "points lost", "peer's",
    "over FP32", "over the peer, batch 1", "batch 32", "size of FP32", "peer's",
)  # fmt: skip
ROWS = 2000
QUICK = Pace(least=4, most=6, seconds=0.5)
SIDE_BY_SIDE = Pace(least=30, most=200, seconds=20.0, openings=5, most_openings=8)


@dataclass(frozen=True)
class Made:
    """Artifacts of one network in one runtime by kind (float, karui, peer), and the trials of all."""

    artifacts: dict[str, Artifact]
    trials: dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--runtimes", nargs="+", default=list(PEERS))
    args = parser.parse_args()
    print("# Static INT8: one table of ranges, three runtimes\n")
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|{'--:|' * (len(COLUMNS) - 2)}")
    for name in args.networks:
        for line in rows(name, args.runtimes):
            print(line, flush=True)


def rows(name: str, wanted: list[str]) -> Iterator[str]:
    task = tasks.task(name)
    with tempfile.TemporaryDirectory() as scratch:
        kinds = {
            runtime: {"float": f"fp32@{runtime}", "karui": f"int8@{runtime}", "peer": PEERS[runtime]}
            for runtime in wanted
        }
        recipes = tuple(recipe for each in kinds.values() for recipe in each.values())
        result = karui.optimize(
            task,
            karui.Target("cpu", batch=1),
            budget=karui.Budget(max_drop=100),
            out=Path(scratch) / "run",
            settings=Settings(recipes=recipes, pace=QUICK, final=QUICK),
        )
        trials = {trial["recipe"]: trial for trial in result.facts["trials"]}
        for runtime, each in kinds.items():
            found = {kind: trials[recipe] for kind, recipe in each.items() if recipe in trials}
            homes = {
                kind: load_artifact(result.folder / trial["artifact"])
                for kind, trial in found.items()
                if trial["status"] != "failed"
            }
            print(name, runtime, {k: t["reason"] for k, t in found.items()}, file=sys.stderr, flush=True)
            yield row(name, runtime, Made(homes, found), task, result.folder)


def row(name: str, runtime: str, made: Made, task: Any, folder: Path) -> str:
    start = f"| {name} | {runtime} |"
    if "karui" not in made.artifacts:
        return f"{start} {made.trials['karui']['reason']} |" + " |" * (len(COLUMNS) - 3)
    trial = made.trials["karui"]
    agreement, lsb = parity(made.artifacts["karui"], folder)
    sizes = {kind: one.size_bytes for kind, one in made.artifacts.items()}
    peer = made.trials.get("peer", {}).get("quality") if "peer" in made.artifacts else None
    cells = [
        f"{agreement:.2%}", f"{lsb:.2f}", f"{trial['executed']['int8_macs']:.1%}",
        f"{100 * trial['quality']['drop']:.2f}", f"{100 * peer['drop']:.2f}" if peer else "-",
        speed(made, "float", 1), speed(made, "peer", 1), speed(made, "peer", 32),
        f"{sizes['karui'] / sizes['float']:.2f}",
        f"{sizes['peer'] / sizes['float']:.2f}" if "peer" in sizes else "-",
    ]  # fmt: skip
    return f"{start} {' | '.join(cells)} |"


def speed(made: Made, other: str, batch: int) -> str:
    """How many times faster karui's is than the other, both timed side by side."""
    if other not in made.artifacts:
        return "-"
    pair = [made.artifacts[other].folder, made.artifacts["karui"].folder]
    found = compare(pair, Conditions(batch), SIDE_BY_SIDE)[1]["speedup"]
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def parity(artifact: Artifact, run: Path) -> tuple[float, float]:
    """Agreement with fake-quant, and the largest difference in steps of the output's range."""
    name = artifact.signature.inputs[0].name
    images = np.array(open_arrays(run / "data" / "select")[name][:ROWS])
    reference = fake_quant(artifact, run, images)
    runtime = runtimes.load(parse_recipe(artifact.recipe).runtime)
    predict = runtime.load(artifact.folder, artifact.signature, 1)
    parts = [predict({name: images[i : i + 50]})[0] for i in range(0, len(images), 50)]
    answers = np.concatenate([np.array(part) for part in parts])
    step = (reference.max() - reference.min()) / 255
    agree = float((answers.argmax(1) == reference.argmax(1)).mean())
    return agree, float(np.abs(answers - reference).max() / step)


def fake_quant(artifact: Artifact, run: Path, images: np.ndarray) -> np.ndarray:
    from karui import host
    from karui.graph.ranges import profiles
    from karui.graph.ranges.program import quantized
    from karui.numerics import Numerics

    name = artifact.signature.inputs[0].name
    calibrate = open_arrays(run / "data" / "calibrate")
    kind = artifact.runtime if artifact.runtime != "aot_inductor" else "inductor"
    profile = getattr(profiles, kind)(saturates=host.saturates(host.flags()))
    source = runtimes.Source(
        run / "model" / "fp32", artifact.signature, Numerics("int8"), calibrate, {name: images}
    )
    return np.asarray(quantized(source, profile, "minmax").reference[0])


if __name__ == "__main__":
    try:
        main()
    except KaruiError as error:
        sys.exit(str(error))
