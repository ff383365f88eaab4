"""Accuracy of rounded weights: to nearest, and by what karui does about it, with no training and no labels.

    python -m benchmarks.rounding > benchmarks/results/rounding.md

Needs ``make data`` and the checkpoints of ``python -m benchmarks.networks.train fashion mnist deep encoder``.
Activations are rounded to 8 bits where ONNX Runtime rounds them; the answers are those of the fake-quant
reference, in which runtimes' own answers have been found to agree (docs/quantization.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from benchmarks.networks import tasks
from torch import Tensor, nn
from torch.fx import GraphModule

from karui import techniques
from karui.graph.call import signature_of
from karui.graph.consumers import batches
from karui.graph.fold import fold_norms
from karui.graph.inspect import private_copy
from karui.graph.ranges.calibrate import calibrate
from karui.graph.ranges.insert import insert
from karui.graph.ranges.profiles import onnxruntime
from karui.graph.ranges.table import Table, signed
from karui.graph.trace import ROOT, trace
from karui.numerics import Numerics
from karui.recipe import parse_named

CALIBRATION = 512  # unlabelled training images of one seed
TEST = 5000
NETWORKS = ("fashion", "mnist", "deep", "encoder")
ROUNDED = "round_weights:bits={bits},method="
WAYS = (  # and whether calibration data decide much more than the ranges of activations
    ("nearest, scale from the extremes", (), False),
    ("nearest, scale of least squared error", (ROUNDED + "nearest",), False),
    ("equalize, nearest", ("fold_norm", "equalize"), False),
    ("smooth, nearest", ("fold_norm", "smooth"), False),
    ("correct_bias, nearest", ("correct_bias:bits={bits}",), True),
    ("equalize, correct_bias, nearest", ("fold_norm", "equalize", "correct_bias:bits={bits}"), False),
    ("GPTQ", (ROUNDED + "gptq",), True),
    ("AdaRound", (ROUNDED + "adaround",), True),
)


@dataclass(frozen=True)
class Data:
    """Training images to draw calibration data from; test images and their labels."""

    train: Tensor
    test: Tensor
    answers: Tensor

    def calibration(self, seed: int) -> dict[str, np.ndarray]:
        rows = np.random.default_rng(seed).permutation(len(self.train))[:CALIBRATION]
        return {"x": self.train[rows].numpy()}


def data_of(task: tasks.Task) -> Data:
    parts = [split[i] for split in (task.select, task.confirm) for i in range(len(split))][:TEST]
    answers = torch.stack([y for _, y in parts])
    return Data(task.train.tensors[0], torch.stack([x for x, _ in parts]), answers)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    found = [model(batch) for batch in data.test.split(500)]
    answers = torch.cat([(one[0] if isinstance(one, (tuple, list)) else one).argmax(1) for one in found])
    return 100 * float((answers == data.answers).double().mean())


def score(model: nn.Module, steps: Sequence[str], bits: int, data: Data, seed: int) -> float:
    """Accuracy after ``steps``, with weights in ``bits`` and activations in 8."""
    model, arrays, table = private_copy(model), data.calibration(seed), Table()
    signature, example = signature_of(model, data.test[:8], 1)
    arrays = {signature.inputs[0].name: arrays["x"]}
    for step in steps:
        technique = techniques.load(parse_named(step.format(bits=bits)))
        done = technique.apply(model, techniques.Given(example, arrays, signature, ranges=table))
        model, table = done.model, table.with_(done.ranges or {})
    traced = trace(model, signature, example)
    return accuracy(rounded(traced.graph, table, bits, arrays), data)


@torch.no_grad()
def rounded(graph: GraphModule, table: Table, bits: int, arrays: dict[str, np.ndarray]) -> GraphModule:
    """The graph as a runtime computes it."""
    factors = {path.removeprefix(ROOT): factor for path, factor in fold_norms(graph).items()}
    known = {path: one.times(factors[path]) if path in factors else one for path, one in table.items()}
    found = calibrate(graph, batches(arrays, 32, CALIBRATION), "minmax", Table(known))
    profile = dataclasses.replace(onnxruntime(saturates=False), weights=signed(bits))
    insert(graph, found, profile, Numerics("int8"))
    return graph


def rows(name: str, bits: Sequence[int], seeds: int) -> None:
    task = tasks.task(name)
    data = data_of(task)
    base = accuracy(task.model, data)
    print(f"\n## {name}: {base:.2f} % in float\n")
    columns = [f"W{b}A8 accuracy | points lost" for b in bits]
    print(f"| how | {' | '.join(columns)} | seconds |\n|---|{'--:|' * (2 * len(bits) + 1)}")
    for title, steps, learned in WAYS:
        start, cells, runs = time.process_time(), [], 0
        for b in bits:
            count = seeds if learned and b == min(bits) else 1
            found = [score(task.model, steps, b, data, seed) for seed in range(count)]
            spread = f" ± {statistics.stdev(found):.2f}" if count > 1 else ""
            cells.append(f"{statistics.mean(found):.2f}{spread} | {base - statistics.mean(found):+.2f}")
            runs += count
        print(f"| {title} | {' | '.join(cells)} | {(time.process_time() - start) / runs:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 7])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("# Weights rounded to 4 and to 7 bits, activations to 8\n")
    print(f"{TEST:,} test images, {CALIBRATION} unlabelled calibration images, one thread. ", end="")
    print(f"With ±: the mean of {options.seeds} draws of calibration images and its deviation. ", end="")
    print("CPU seconds of one run include the measurement of accuracy.")
    for name in options.networks:
        rows(name, options.bits, options.seeds)


if __name__ == "__main__":
    main()
