"""All committed tables, made again, one after the other (eight hours on two cores)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLES = {
    "budget_calibration": [],
    "eager": [],
    "aa": ["--runs", "40"],
    "busy": ["--repeats", "5"],
    "gate": ["--rows", "karui-runs/gate"],
    "kill": ["--kills", "20"],
    "channels": [],
    "billion": [],
    "scale": [],
    "rounding": [],
    "zeros": [],
    "csr": [],
    "distill": [],
    "pair": [],
    "recovery": [],
    "latency": [],
    "int8": [],
    "sizes": [],
    "qat_parity": [],
    "accuracy_control": [],
    "targets": [],
    "tradeoff": [],
}
MEASURED_FIRST = {
    "real_int8": [["--make"]],
    "search": [["--measure", "mnist", "lstm", "encoder"]],
    "cluster": [["--record"], ["--real"]],
}


def main() -> None:
    run("benchmarks.networks.train", ["mnist", "fashion", "deep", "mobile", "mlp", "lstm", "encoder"], None)
    for name, options in TABLES.items():
        run(f"benchmarks.{name}", options, RESULTS / f"{name}.md")
    for name, options in MEASURED_FIRST.items():
        for words in options:
            run(f"benchmarks.{name}", words, None)
        run(f"benchmarks.{name}", [], RESULTS / f"{name}.md")
    run("benchmarks.grid", [], None)
    run("benchmarks.grid", ["--networks", "mlp", "lstm", "encoder", "--batches", "1"], None)


def run(module: str, options: list[str], output: Path | None) -> None:
    print(f"{module} {' '.join(options)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", module, *options], cwd=ROOT, check=True, text=True,
        stdout=subprocess.PIPE if output else None,
    )  # fmt: skip
    if output:
        output.write_text(done.stdout, encoding="utf-8")


if __name__ == "__main__":
    main()
