"""A/A: two copies of one artifact must come out alike, and a copy slowed by 5 % must be found.

    python benchmarks/aa.py --runs 40 > benchmarks/results/aa.md

The slowed copy runs the same file through a runtime, defined here and dropped into a copy of the
package, that waits 5 % of each call's own duration before it answers.
"""

from __future__ import annotations

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import karui

SLOWED = '''"""ONNX Runtime, 5 % slower: for the A/A benchmark only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

from karui.runtimes import Built, Runtime, load as load_runtime
from karui.recipe import Named


@final
@dataclass(frozen=True)
class Slowed(Runtime):
    share: float = 0.05

    def refuses(self, ask):
        return None

    def casts_in_torch(self, precision):
        return False

    def build(self, source, folder):
        return load_runtime(Named("onnxruntime")).build(source, folder)

    def load(self, folder, signature, threads):
        predict = load_runtime(Named("onnxruntime")).load(folder, signature, threads)
        share, clock = self.share, time.perf_counter

        def slowed(arrays):
            start = clock()
            answer = predict(arrays)
            until = start + (clock() - start) * (1 + share)
            while clock() < until:
                pass
            return answer

        return slowed
'''

PART = """
import json, sys
from pathlib import Path
from karui import api
from karui.bench.compare import compare
from karui.bench.machine import Conditions
from karui.optimize import Settings
from karui.process import Limits
folders, seeds = [Path(p) for p in sys.argv[1:3]], range(int(sys.argv[3]), int(sys.argv[4]))
for seed in seeds:
    rows = compare(folders, Conditions(limits=Limits(60)), Settings().final, seed)
    print(json.dumps(rows[1]["speedup"] | {"rounds": rows[1]["rounds"]}), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        environment = with_slowed_runtime(home)
        made = make_artifacts(home, environment)
        print("# A/A and a copy slowed by 5 %\n")
        print(f"{args.runs} runs each, the demo's network in ONNX Runtime FP32, batch 1, one thread.\n")
        print("| pair | no measurable difference | slower | faster | median ratio | median half-width |")
        print("|---|---|---|---|---|---|")
        for what, pair in (("two copies", ("a", "b")), ("copy slowed by 5 %", ("a", "slowed"))):
            report(what, compared([made[key] for key in pair], args.runs, environment))


def with_slowed_runtime(home: Path) -> dict[str, str]:
    shutil.copytree(Path(karui.__file__).parent, home / "src" / "karui")
    (home / "src" / "karui" / "runtimes" / "slowed.py").write_text(SLOWED)
    return dict(os.environ) | {"PYTHONPATH": str(home / "src")}


def make_artifacts(home: Path, environment: dict[str, str]) -> dict[str, Path]:
    code = (
        "import sys; from pathlib import Path; from karui import api; from karui.demo import task\n"
        "from karui.optimize import Settings\n"
        "recipes = ('fp32@onnxruntime', 'fp32@slowed')\n"
        "api.optimize(task(), out=Path(sys.argv[1]), settings=Settings(recipes=recipes))"
    )
    subprocess.run([sys.executable, "-c", code, str(home / "run")], env=environment, check=True)
    trials = home / "run" / "trials"
    made = {"slowed": trials / "slowed-fp32" / "artifact"}
    for copy in ("a", "b"):
        made[copy] = home / copy / "artifact"
        shutil.copytree(trials / "onnxruntime-fp32" / "artifact", made[copy])
    return made


def compared(pair: list[Path], runs: int, environment: dict[str, str]) -> list[dict]:
    import json

    command = [sys.executable, "-c", PART, *map(str, pair), "0", str(runs)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def report(what: str, found: list[dict]) -> None:
    count = collections.Counter(row["verdict"] for row in found)
    ratios = sorted(row["ratio"] for row in found)
    widths = sorted((row["high"] - row["low"]) / 2 / row["ratio"] for row in found)
    middle = len(found) // 2
    print(
        f"| {what} | {count['no measurable difference']} | {count['slower']} | {count['faster']} "
        f"| {ratios[middle]:.3f} | {widths[middle]:.2%} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
