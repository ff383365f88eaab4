"""Quantization-aware training beside rounding alone and beside float training of the same length.

    python -m benchmarks.quantize_aware > benchmarks/results/quantize_aware.md

Needs ``make data`` and the checkpoints ``fashion``, ``mnist`` and ``encoder``. Rows are printed as they are
made; ``--nets``, ``--bits`` and ``--seeds`` make fewer of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from benchmarks.networks import tasks
from torch import Tensor, nn

from karui.graph.call import signature_of
from karui.graph.inspect import private_copy
from karui.graph.quantize_aware import QuantAware, Rounding, aware_of
from karui.techniques import Given
from karui.techniques.quantize_aware import QuantizeAware

CALIBRATION, TEST = 512, 5000
NETS = {"fashion": 120, "mnist": 200, "encoder": 200}  # steps, of 64 samples
BITS = (7, 4, 3)
RATE = 1e-3
OBSERVERS = ("minmax", "mse")
STEPS = ", ".join(f"{name} {steps}" for name, steps in NETS.items())
WORDS = f"""Test accuracy in percent on {TEST:,} images that no option was chosen on (the learning rate was
chosen on other ones), mean and standard deviation over the seeds. *rounded*: to nearest, with no training, by
the better of the observers {" and ".join(OBSERVERS)}; the better on these images, which flatters it. *float
training, rounded*: the same loop without rounding, and then the same. *aware training*: `quantize_aware` with
its defaults but lr={RATE:g}, which the loop before has too: half of the loss is the labels', half that of the
original's answers. Steps of 64 images: {STEPS}. A gain counts over float training
only. The last but one column is the file that ONNX Runtime ran; in brackets the same seed as it was trained.
Seconds were taken on a busy machine.
"""
FLOAT = ("*",)  # everything is protected: the same loop, without rounding


@dataclass(frozen=True)
class Case:
    """A network and its data."""

    name: str
    model: nn.Module
    given: Given
    images: Tensor
    answers: Tensor


def case_of(name: str) -> Case:
    task = tasks.task(name)
    images, answers = task.train.tensors
    signature, example = signature_of(task.model, images[:8], 1)
    given = Given(example, {signature.inputs[0].name: images[:CALIBRATION].numpy()}, signature, task.train)
    rest = [task.confirm[i] for i in range(TEST)]  # not those that options were chosen on
    return Case(
        name, task.model, given, torch.stack([x for x, _ in rest]), torch.tensor([int(y) for _, y in rest])
    )


def made(case: Case, model: nn.Module, rounding: Rounding) -> QuantAware:
    given = case.given
    return aware_of(private_copy(model), given.signature, given.inputs, given.calibrate, rounding).eval()


@torch.no_grad()
def accuracy(model: nn.Module, case: Case) -> float:
    found = torch.cat([model(batch).argmax(1) for batch in case.images.split(500)])
    return 100 * float((found == case.answers).double().mean())


def trained(case: Case, seed: int, rounding: Rounding, distill: float | None) -> QuantAware:
    aware = made(case, case.model, rounding)
    options = QuantizeAware(steps=NETS[case.name], lr=RATE, seed=seed, distill=distill)
    options.train(aware, private_copy(case.model), case.given)
    return aware


def on_onnxruntime(case: Case, aware: QuantAware) -> float:
    """The accuracy of the file that ONNX Runtime is given."""
    from karui.graph.capture import capture
    from karui.graph.ranges.table import save_table
    from karui.numerics import Numerics
    from karui.runtimes import Source
    from karui.runtimes.onnxruntime import OnnxRuntime

    with tempfile.TemporaryDirectory() as scratch:
        home, built = Path(scratch) / "captured", Path(scratch) / "built"
        signature = capture(private_copy(aware.model), case.given.signature, case.given.inputs, home)
        save_table(aware.ranges(), home)
        built.mkdir()
        source = Source(home, signature, Numerics("int8"), case.given.calibrate, case.given.inputs)
        OnnxRuntime().build(source, built)
        predict = OnnxRuntime().load(built, signature, 1)
        (name,) = case.given.inputs
        answers = [torch.from_numpy(predict({name: part.numpy()})[0]) for part in case.images.split(500)]
    return 100 * float((torch.cat(answers).argmax(1) == case.answers).double().mean())


def row(*cells: object) -> None:
    print(
        "| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |",
        flush=True,
    )


def spread(found: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return f"{statistics.mean(found):.2f} ± {deviation:.2f}"


def rows_of(case: Case, bits_of: list[int], seeds: int, distill: float | None) -> None:
    start = time.perf_counter()
    floats = [trained(case, seed, Rounding(protect=FLOAT), distill) for seed in range(seeds)]
    float_s = (time.perf_counter() - start) / seeds
    row(
        case.name,
        "float",
        accuracy(case.model, case),
        spread([accuracy(one, case) for one in floats]),
        "",
        "",
        "",
        f"{float_s:.0f}",
    )
    for bits in bits_of:
        rounding = Rounding(bits)
        start = time.perf_counter()
        learned = [trained(case, seed, rounding, distill) for seed in range(seeds)]
        seconds = (time.perf_counter() - start) / seeds
        before = max(
            accuracy(made(case, case.model, replace(rounding, observer=one)), case) for one in OBSERVERS
        )
        tuned = [
            max(accuracy(made(case, one.model, replace(rounding, observer=name)), case) for name in OBSERVERS)
            for one in floats
        ]
        aware = [accuracy(one, case) for one in learned]
        gain = [one - other for one, other in zip(aware, tuned)]
        runtime = on_onnxruntime(case, learned[0])
        row(
            case.name,
            f"W{bits}A8",
            before,
            spread(tuned),
            spread(aware),
            spread(gain),
            f"{runtime:.2f} ({aware[0]:.2f})",
            f"{seconds:.0f}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--bits", nargs="+", type=int, default=BITS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--distill", type=float, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("# Quantization-aware training\n")
    print(WORDS)
    row(
        "network",
        "weights, activations",
        "rounded",
        "float training, rounded",
        "aware training",
        "gain over float training",
        "seed 0 in ONNX Runtime (here)",
        "s a run",
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for name in options.nets:
        rows_of(case_of(name), options.bits, options.seeds, options.distill)


if __name__ == "__main__":
    main()
