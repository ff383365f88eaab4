"""The gate of ``karui verify --lock``: false alarms beside a busy process, and what is caught.

    python -m benchmarks.gate --rows gate-rows > benchmarks/results/gate.md

Each row is one call of the command line, in processes of its own: of an unchanged artifact, of the same
files where the runtime answers 10 % later (it waits a tenth of each call's own time, in a copy of the
package), and of an artifact whose weights were disturbed until it is one point worse. Finished rows stay in
the folder, so a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

import karui
from karui.artifact import load_artifact, save_artifact

TIMES = {"unchanged": 50, "10 % slower": 20, "1 point worse": 20}
SLOWED = """

def _later(load):
    import time

    def slowed(self, folder, signature, threads):
        predict, clock = load(self, folder, signature, threads), time.perf_counter
        if "slowed" not in folder.parts:
            return predict

        def answer(arrays):
            start = clock()
            found = predict(arrays)
            until = start + (clock() - start) * 1.1
            while clock() < until:
                pass
            return found

        return answer

    return slowed


OnnxRuntime.load = _later(OnnxRuntime.load)
"""
MAKE = """
import sys
from pathlib import Path
from karui import api
from karui.demo import task
from karui.optimize import Settings
recipes = ("fp32@onnxruntime", "int8@onnxruntime")
api.optimize(task(), out=Path(sys.argv[1]), settings=Settings(recipes=recipes))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="folder for the run, its lock and the rows")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long, and report")
    args = parser.parse_args()
    home, until = args.rows.resolve(), time.monotonic() + 60 * args.minutes
    environment = prepared(home)
    busy = multiprocessing.Process(target=spin, daemon=True)
    busy.start()
    try:
        for number, case in order():
            if time.monotonic() < until and (case, number) not in done(home):
                row = verified(home, case, number, environment)
                with (home / "rows.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
    finally:
        busy.terminate()
    report(home)


def spin() -> None:
    while True:
        pass


def order() -> list[tuple[int, str]]:
    """The cases take turns, so that a benchmark that was stopped has some of each."""
    return [(number, case) for number in range(max(TIMES.values())) for case in TIMES if number < TIMES[case]]


def rows(home: Path) -> list[dict]:
    path = home / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def done(home: Path) -> set[tuple[str, int]]:
    return {(row["case"], row["number"]) for row in rows(home)}


def prepared(home: Path) -> dict[str, str]:
    """The copy of the package, the run and its lock, made once."""
    source = home / "src" / "karui"
    if not source.exists():
        shutil.copytree(Path(karui.__file__).parent, source)
        with (source / "runtimes" / "onnxruntime.py").open("a") as file:
            file.write(SLOWED)
    environment = dict(os.environ) | {"PYTHONPATH": str(home / "src")}
    if not (home / "run" / "result.json").exists():
        subprocess.run(
            [sys.executable, "-c", MAKE, str(home / "run")], env=environment, check=True, capture_output=True
        )
    if not (home / "karui.lock").exists():
        command = ["lock", str(artifact(home)), "-o", str(home / "karui.lock")]
        subprocess.run(
            [sys.executable, "-m", "karui", *command], env=environment, check=True, capture_output=True
        )
    if not (home / "slowed").exists():
        shutil.copytree(artifact(home), home / "slowed" / "artifact")
    return environment


def artifact(home: Path) -> Path:
    return home / "run" / "trials" / "onnxruntime-int8" / "artifact"


def verified(home: Path, case: str, number: int, environment: dict[str, str]) -> dict:
    """One call of ``karui verify``; what it said, and how long it took."""
    options = ["--lock", str(home / "karui.lock"), "--run", str(home / "run"), "--json"]
    folder, facts = artifact(home), {}
    if case == "10 % slower":
        folder = home / "slowed" / "artifact"
    if case == "1 point worse":
        folder, facts = worsened(home, number)
        options += ["--rebuilt", "--no-speed"]
    start, load = time.monotonic(), os.getloadavg()[0]
    command = [sys.executable, "-m", "karui", "verify", str(folder), *options]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = json.loads(said.stdout)
    return facts | {
        "case": case,
        "number": number,
        "code": said.returncode,
        "verdict": found["verdict"],
        "checks": {check["name"]: check["facts"] for check in found["checks"]},
        "seconds": round(time.monotonic() - start, 1),
        "load": load,
    }


def worsened(home: Path, seed: int) -> tuple[Path, dict]:
    """A copy whose weights are disturbed, by as little as makes it at least one point worse."""
    folder = home / "worse" / str(seed) / "artifact"
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(artifact(home), folder)
    path, original = folder / "model.onnx", score(home, artifact(home) / "model.onnx")
    few, many, dropped = 0.0, 64.0, 0.0
    for _ in range(14):
        middle = (few + many) / 2
        disturb(artifact(home) / "model.onnx", path, middle, seed)
        if original - score(home, path) < 0.01:
            few = middle
        else:
            many = middle
    disturb(artifact(home) / "model.onnx", path, many, seed)
    dropped = original - score(home, path)
    save_artifact(load_artifact(folder, check=False))
    return folder, {"dropped": round(dropped, 4)}


def disturb(source: Path, path: Path, scale: float, seed: int) -> None:
    """Normal noise, ``scale`` steps of INT8, on all weights of several dimensions."""
    model, rng = onnx.load(source), np.random.default_rng(seed)
    for weight in model.graph.initializer:
        if len(weight.dims) > 1 and weight.data_type == onnx.TensorProto.INT8:
            values = numpy_helper.to_array(weight)
            moved = np.clip(np.rint(values + rng.normal(0, scale, values.shape)), -127, 127).astype(np.int8)
            weight.CopyFrom(numpy_helper.from_array(moved, weight.name))
    onnx.save(model, path)


def score(home: Path, path: Path) -> float:
    """Share of right answers on the confirmation split, row by row as the gate asks."""
    (inputs,) = (home / "run" / "data" / "confirm").glob("*.npy")
    images = np.load(inputs)
    labels = np.load(home / "run" / "data" / "confirm.targets.npy")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    answers = [session.run(None, {name: images[i : i + 1]})[0].argmax() for i in range(len(images))]
    return float((np.array(answers) == labels).mean())


def report(home: Path) -> None:
    found = rows(home)
    lock = json.loads((home / "karui.lock").read_text())
    speed = lock["speed"][0]
    print("# The gate of `karui verify --lock`\n")
    print(f"The demo's network as `{lock['artifact']['recipe']}`, batch 1, one thread, timed against")
    print(f"`{speed['recipe']}`: locked {speed['ratio']:.3f}x [{speed['low']:.3f}, {speed['high']:.3f}] in")
    print(f"{len(speed['openings'])} openings, standard deviation between openings {speed['spread']:.1%}.")
    print("Beside a process that keeps one core busy. What is allowed is the default: half a point, and")
    print("5 % slower. The worse artifact differs in its files, so it is verified with `--rebuilt`, and by")
    print("its score alone (`--no-speed`); the slower one has the locked files.\n")
    print("| artifact | verified | as locked | regression | undecided | seconds, median | load average |")
    print("|---|---|---|---|---|---|---|")
    for case in TIMES:
        mine = [row for row in found if row["case"] == case]
        if mine:
            print(f"| {case} | {line(mine, TIMES[case])} |")
    speeds = {case: [row["checks"]["speed"] for row in found if told(row, case)] for case in TIMES}
    print("\nAgainst the lock, median and range, and openings until the verdict:\n")
    for case, facts in speeds.items():
        if facts:
            ratios = [one["ratio"] for one in facts]
            count = sorted(collections.Counter(one["openings"] for one in facts).items())
            times = ", ".join(f"{number} in {often}" for number, often in count)
            print(f"- {case}: {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); {times}")
    drops = [row["dropped"] for row in found if "dropped" in row]
    if drops:
        print(f"\nThe worse artifacts had lost {min(drops) * 100:.1f} to {max(drops) * 100:.1f} points.")


def line(mine: list[dict], wanted: int) -> str:
    count = collections.Counter(row["verdict"] for row in mine)
    verdicts = " | ".join(str(count[word]) for word in ("as locked", "regression", "undecided"))
    seconds, load = (np.median([row[key] for row in mine]) for key in ("seconds", "load"))
    return f"{len(mine)} of {wanted} | {verdicts} | {seconds:.0f} | {load:.1f}"


def told(row: dict, case: str) -> bool:
    return row["case"] == case and "speed" in row["checks"]


if __name__ == "__main__":
    main()
