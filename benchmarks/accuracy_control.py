"""Layers in float under an accuracy budget: karui's bisection beside NNCF's accuracy control.

    python -m benchmarks.accuracy_control > benchmarks/results/accuracy_control.md

Both get the model in OpenVINO, the same calibration data, the same validation samples and the same allowed
drop (of the share of right answers). Counted are evaluations: for karui whole trials, each a build scored on
all validation samples, and fitting by the mean drop, as NNCF has it; for NNCF samples that its validation
function saw, divided by the number of samples.
``spread`` is the network of the photo patches with the channels between its blocks multiplied by 10^u, u from
-1.5 to 1.5, and divided again where they are read: in float it is the same function, with one scale for a
tensor it is not. Needs the data of the networks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.networks import tasks
from benchmarks.real import photos
from torch import nn

import karui
from karui.bench.rounds import Pace
from karui.data import Split, items, read_split
from karui.demo.networks import InvertedResidual
from karui.graph.call import signature_of
from karui.graph.capture import capture
from karui.graph.onnx import export_onnx, quiet
from karui.graph.ov_kernels import INT8, kernels_of, products_of
from karui.optimize import Settings
from karui.runtimes.openvino import ov, silent_nncf
from karui.task import Task

ROWS, CALIBRATE, MIXED = 2500, 128, 4
DROPS = {"mobile": 0.01, "photos": 0.01, "spread": 0.01}
REACH = 1.5  # of the exponents by which ranges are spread
QUICK = Pace(least=4, most=6, seconds=0.3)


@dataclass(frozen=True)
class Found:
    """correct: share of right answers, before and after. layers: in float, of all. evaluations: see above."""

    correct: tuple[float, float]
    layers: tuple[int, int]
    evaluations: float
    how: str

    def cells(self) -> str:
        before, after = self.correct
        return (
            f"{100 * before:.1f} | {100 * after:.1f} | {self.layers[0]} of {self.layers[1]} "
            f"| {self.evaluations:.1f} | {self.how}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(DROPS), choices=list(DROPS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("# Layers in float under an accuracy budget\n")
    print(
        f"Allowed: 1 point of {ROWS} validation samples; OpenVINO; at most {MIXED} mixed trials for karui.\n"
    )
    print(
        "| network | by | FP32 | INT8 | layers in float | evaluations | how |\n|---|---|--:|--:|--:|--:|---|"
    )
    for name in args.networks:
        task = short(task_of(name))
        print(f"| {name} | NNCF | {by_nncf(task, DROPS[name]).cells()} |", flush=True)
        print(f"| {name} | karui | {by_karui(task, DROPS[name]).cells()} |", flush=True)


def task_of(name: str) -> Task:
    if name == "mobile":
        return tasks.task("mobile")
    task = photos.task()
    return replace(task, model=spread(task.model)) if name == "spread" else task


def spread(model: nn.Module) -> nn.Module:
    """The same function, with channels of very different reach in what stands between blocks.

    No ReLU stands there, so that a factor passes: the last norm of a block is multiplied, and so is that of
    each block that adds to it; the first convolution of whatever reads it is divided.
    """
    draw, factors = torch.Generator().manual_seed(0), None
    with torch.no_grad():
        for block in model.children():
            first = next((one for one in block.modules() if isinstance(one, nn.Conv2d)), None)
            if factors is not None and first is not None:
                first.weight.div_(factors.reshape(1, -1, 1, 1))
            norms = [one for one in block.modules() if isinstance(one, nn.BatchNorm2d)]
            if not isinstance(block, InvertedResidual):
                factors = None
                continue
            if not block.whole:
                factors = 10 ** ((torch.rand(norms[-1].num_features, generator=draw) * 2 - 1) * REACH)
            norms[-1].weight.mul_(factors)
            norms[-1].bias.mul_(factors)
    return model


def short(task: Task) -> Task:
    """With fewer samples, the same for both."""
    known = part(task, task.select)
    name = next(iter(known.inputs))
    x, y = torch.tensor(known.inputs[name]), torch.tensor(known.targets)
    calibrate = part(task, task.calibrate).inputs[name][:CALIBRATE]
    return replace(
        task,
        calibrate=[torch.tensor(calibrate)],
        select=(x[:ROWS], y[:ROWS]),
    )  # fmt: skip


def part(task: Task, data: Any) -> Split:
    signature, _ = signature_of(task.model, task.inputs, 1)
    return read_split(list(items(data, "data")), [port.name for port in signature.inputs], "data")


def by_nncf(task: Task, drop: float) -> Found:
    nncf = silent_nncf()
    known, calls = part(task, task.select), [0]
    name = next(iter(known.inputs))
    samples = [({name: known.inputs[name][i : i + 1]}, int(known.targets[i])) for i in range(len(known))]

    def validate(model: Any, rows: Iterable[Any]) -> tuple[float, list[float]]:
        right = []
        for given, answer in rows:
            calls[0] += 1
            right.append(float(np.asarray(model(given)[0]).argmax() == answer))
        return float(np.mean(right)), right

    model = as_openvino(task)
    before, _ = validate(compiled(model), samples)
    calls[0] = 0
    with quiet():
        made = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset([{name: row[None]} for row in part(task, task.calibrate).inputs[name]]),
            nncf.Dataset(samples),
            validate,
            max_drop=drop,
            drop_type=nncf.DropType.ABSOLUTE,
        )
    used = calls[0] / len(samples)
    after, _ = validate(compiled(made), samples)
    return Found((before, after), floats(made), used, "`quantize_with_accuracy_control`")


def as_openvino(task: Task) -> Any:
    signature, example = signature_of(task.model, task.inputs, 1)
    with tempfile.TemporaryDirectory() as scratch:
        captured = capture(task.model, signature, example, Path(scratch) / "captured")
        export_onnx(Path(scratch) / "captured", captured, Path(scratch) / "model.onnx")
        return ov.Core().read_model(Path(scratch) / "model.onnx")


def compiled(model: Any) -> Any:
    return ov.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )


def floats(model: Any) -> tuple[int, int]:
    kernels = kernels_of(compiled(model), products_of(model))
    return sum(kernel.precision not in INT8 for kernel in kernels), len(kernels)


def by_karui(task: Task, drop: float) -> Found:
    with tempfile.TemporaryDirectory() as scratch:
        result = karui.optimize(
            task,
            budget=karui.Budget(max_drop=100 * drop),
            out=Path(scratch) / "run",
            settings=Settings(recipes=("int8@openvino",), mixed=MIXED, pace=QUICK, final=QUICK),
        )
        trials = [
            one for one in result.facts["trials"] if one["recipe"].partition("@")[0].endswith(("int8", "]"))
        ]
        print([(one["recipe"], one["status"], one.get("reason")) for one in trials], file=sys.stderr)
    scored = [one for one in trials if one["quality"]]
    fits = [one for one in scored if one["quality"]["drop"] <= drop]  # a point, as NNCF asks for it
    best = min(fits or scored, key=lambda one: one["executed"]["float_kernels"])
    before = next(one for one in result.facts["trials"] if one["recipe"].startswith("fp32"))
    ran = best["executed"]
    correct = (before["quality"]["value"], best["quality"]["value"])
    layers = (ran["float_kernels"], ran["float_kernels"] + ran["int8_kernels"])
    return Found(correct, layers, len(trials), f"`{best['recipe']}`")


if __name__ == "__main__":
    main()
