"""Bytes of INT8 models beside FP32, on each runtime: of small networks, and of released ones.

    python -m benchmarks.sizes > benchmarks/results/sizes.md

What a runtime loads is counted, without karui's notes beside it. Needs ``make data``, the checkpoints and
``python -m benchmarks.real.packages``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.networks.tasks import task_at

import karui

TASKS = {
    "MNIST network": "benchmarks.networks.tasks:mnist",
    "Fashion-MNIST ResNet": "benchmarks.networks.tasks:fashion",
    "depthwise CNN": "benchmarks.real.photos:task",
    "EfficientNet-Lite0": "benchmarks.real.efficientnet:task",
    "MiniLM-L6": "benchmarks.real.minilm:task",
}
RUNTIMES = ("onnxruntime", "openvino", "openvino:compress_xml=true", "aot_inductor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("# Bytes of INT8 models beside FP32\n")
    print("| network | runtime | FP32 | INT8 | of FP32 | of the FP32 ONNX file |\n|---|---|--:|--:|--:|--:|")
    for name in args.tasks:
        onnx = None
        for runtime in RUNTIMES:
            found = [built(TASKS[name], f"{precision}@{runtime}") for precision in ("fp32", "int8")]
            if reason := next((one["failure"] for one in found if "failure" in one), ""):
                print(f"| {name} | {runtime} | {reason} | | | |", flush=True)
                continue
            fp32, int8 = (one["size_bytes"] for one in found)
            onnx = onnx or fp32
            print(f"| {name} | {runtime} | {fp32:,} | {int8:,} | {int8 / fp32:.2f} | {int8 / onnx:.2f} |")


def built(place: str, recipe: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        [told] = karui.quantize(task_at(place), recipe, Path(folder) / "out")
        return told


if __name__ == "__main__":
    main()
