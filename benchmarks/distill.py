"""Learning from a teacher: students with and without it, recovery without labels, and half precision.

Run ``python -m benchmarks.distill`` after ``make data`` and ``python -m benchmarks.networks.train``.
One thread, seeded.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from benchmarks.networks import tasks
from benchmarks.networks.train import PLANS
from torch import Tensor, nn

from karui import techniques
from karui.graph.call import signature_of
from karui.graph.inspect import private_copy
from karui.recipe import parse_named
from karui.techniques import Given
from karui.techniques.distill import Distill
from karui.techniques.finetune import Finetune

SEEDS = (0, 1, 2)
TEST = 5000
NETS = {"mnist": 500, "fashion": 1000}  # labelled images that a student learns from
WIDTH, STEPS = 0.25, 200  # of the student
KINDS = ("kd", "dist")
CUTS = {
    "mnist": ("prune_channels:ratio=0.75,importance=ln,compensate=false", "prune_channels:ratio=0.875"),
    "fashion": ("prune_channels:ratio=0.5,importance=ln,compensate=false",),
}
UNLABELLED = 4000
RECOVERY = Finetune(steps=150, lr=2e-3)
HALF = ("32", "bf16-mixed", "16-mixed")
MNIST = Finetune(steps=300, batch=64, lr=2e-3, schedule="one_cycle", distill=0.0)
MNIST_SAMPLES = 10000


@dataclass(frozen=True)
class Case:
    """A trained network, its training data, and test images that no option was chosen on."""

    name: str
    model: nn.Module
    given: Given
    images: Tensor
    answers: Tensor

    def learning(self, count: int, seed: int, *, labels: bool) -> Given:
        """As many training samples, drawn by the seed, with the trained network as the teacher."""
        images, answers = self.given.train
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
        train = (images[rows], answers[rows]) if labels else [images[rows]]
        if not labels:
            names = [port.name for port in self.given.signature.inputs]
            return dataclasses.replace(
                self.given, train=None, calibrate={names[0]: images[rows].numpy()}, teacher=self.model
            )
        return dataclasses.replace(self.given, train=train, teacher=self.model)


def case_of(name: str) -> Case:
    task = tasks.task(name)
    signature, example = signature_of(task.model, task.inputs, 1)
    images = task.train.tensors[0]
    calibrate = {signature.inputs[0].name: images[: tasks.CALIBRATE].numpy()}
    rest = [task.confirm[i] for i in range(TEST)]
    return Case(
        name,
        task.model,
        Given(example, calibrate, signature, task.train.tensors),
        torch.stack([image for image, _ in rest]),
        torch.tensor([int(answer) for _, answer in rest]),
    )


@torch.no_grad()
def accuracy(model: nn.Module, case: Case, scale: float = 1.0) -> float:
    found = torch.cat([model(scale * batch).argmax(1) for batch in case.images.split(500)])
    return 100 * float((found == case.answers).double().mean())


def students(names: Sequence[str], seeds: Sequence[int]) -> None:
    """(a) The same student, steps and samples, by labels alone and with the teacher."""
    print(
        "| network | images | teacher | labels alone | loss | with the teacher | gain | twice its standard "
        "error | s a run |\n"
        "|---|--:|--:|--:|---|--:|--:|--:|--:|"
    )
    for name in names:
        case = case_of(name)
        base = Distill(width=WIDTH, start="fresh", steps=STEPS, lr=5e-3)
        alone = [taught(case, dataclasses.replace(base, distill=0.0, seed=seed))[0] for seed in seeds]
        for kind in KINDS:
            options = dataclasses.replace(base, loss=kind, distill=0.9)
            runs = [taught(case, dataclasses.replace(options, seed=seed)) for seed in seeds]
            found = [score for score, _ in runs]
            mean, error = gain(found, alone)
            print(
                f"| {name} | {NETS[name]:,} | {accuracy(case.model, case):.2f} | {spread(alone)} | "
                f"{kind} | {spread(found)} | {mean:+.2f} | {error:.2f} | "
                f"{statistics.mean(seconds for _, seconds in runs):.0f} |"
            )


def gain(found: Sequence[float], alone: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences, seed by seed, and twice its standard error."""
    gains = [one - other for one, other in zip(found, alone, strict=True)]
    error = 2 * statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else math.nan
    return statistics.mean(gains), error


def taught(case: Case, options: Distill) -> tuple[float, float]:
    """Accuracy, and seconds of the training."""
    given, start = case.learning(NETS[case.name], options.seed, labels=True), time.perf_counter()
    applied = options.apply(private_copy(case.model), given)
    return accuracy(applied.model, case), time.perf_counter() - start


def recoveries(names: Sequence[str], seeds: Sequence[int]) -> None:
    """(b) How much of what pruning took comes back without a label."""
    print(
        "| network | pruned by | before | pruned | recovered | share of the drop regained | s a run |\n"
        "|---|---|--:|--:|--:|--:|--:|"
    )
    for name in names:
        case = case_of(name)
        whole = accuracy(case.model, case)
        for cut in CUTS[name]:
            narrow = techniques.load(parse_named(cut)).apply(private_copy(case.model), case.given).model
            low, start = accuracy(narrow, case), time.perf_counter()
            found = []
            for seed in seeds:
                step = dataclasses.replace(RECOVERY, seed=seed)
                given = case.learning(UNLABELLED, seed, labels=False)
                found.append(accuracy(step.apply(private_copy(narrow), given).model, case))
            shares = [100 * (one - low) / (whole - low) for one in found]
            seconds = (time.perf_counter() - start) / len(seeds)
            print(
                f"| {name} | `{cut}` | {whole:.2f} | {low:.2f} | {spread(found)} | {spread(shares, 1)} % | "
                f"{seconds:.0f} |"
            )


def precisions(_: Sequence[str], seeds: Sequence[int]) -> None:
    """(c) The MNIST network from scratch in three precisions, and with pixels that overflow float16."""
    print(
        "| inputs | precision | test accuracy | against 32 | steps left out for overflows | s a run |\n"
        "|---|---|--:|--:|--:|--:|"
    )
    case = case_of("mnist")
    for words, scale, tried in (("0 to 1", 1.0, HALF), ("0 to 255, not normalised", 255.0, HALF[::2])):
        plain: list[float] = []
        for precision in tried:
            runs = [from_scratch(case, precision, scale, seed) for seed in seeds]
            found = [score for score, _, _ in runs]
            plain = plain or found
            gaps = [one - other for one, other in zip(found, plain)]
            print(
                f"| {words} | {precision} | {spread(found)} | {statistics.mean(gaps):+.2f} | "
                f"{', '.join(str(overflows) for _, overflows, _ in runs)} | "
                f"{statistics.mean(seconds for _, _, seconds in runs):.0f} |"
            )


def from_scratch(case: Case, precision: str, scale: float, seed: int) -> tuple[float, int, float]:
    torch.manual_seed(seed)
    fresh = PLANS["mnist"].network().eval()
    given, start = case.learning(MNIST_SAMPLES, seed, labels=True), time.perf_counter()
    images, answers = given.train
    given = dataclasses.replace(given, train=(scale * images, answers), teacher=None)
    step = dataclasses.replace(MNIST, precision=precision, seed=seed)
    applied = step.apply(fresh, given)
    seconds = time.perf_counter() - start
    return accuracy(applied.model, case, scale), applied.facts.get("overflows", 0), seconds


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation, which one seed has not."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


Part = Callable[[Sequence[str], Sequence[int]], None]
WORDS = f"""# Learning from a teacher

Test accuracy in percent on {TEST:,} images that no option was chosen on; mean and standard deviation over
the seeds, which draw the samples, their order and fresh weights. Seconds were taken on a busy
machine.
"""
PARTS: dict[str, tuple[str, Part]] = {
    "students": (
        f"""## The same student with and without its teacher

A copy of {WIDTH:.0%} of the width that karui derives (`distill:start=fresh`), {STEPS} steps of 64 from few
labelled images. *Labels alone* is `distill=0`; the teacher has nine tenths of the loss (`distill=0.9`).
Samples, order, first weights and learning rate are the same.
""",
        students,
    ),
    "recoveries": (
        f"""## Recovery without labels

`finetune` after pruning, {RECOVERY.steps} steps of 64 from {UNLABELLED:,} unlabelled images, the network
before the cut as the teacher. The first cut of each network keeps the largest weights and refits nothing,
the second is by the defaults of `prune_channels` on {tasks.CALIBRATE} images.
""",
        recoveries,
    ),
    "precisions": (
        f"""## Half precision

The MNIST network from scratch, {MNIST.steps} steps of 64 from {MNIST_SAMPLES:,} images. Pixels of 0 to 255
are what a script gives that forgets to normalise: in 16-mixed the first steps overflow, are left out and
counted, and the scale of the loss comes down. A CPU without instructions for FP16 takes longer in it.
""",
        precisions,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(WORDS)
    for part in args.parts:
        words, table = PARTS[part]
        print(words, flush=True)
        table(args.nets, args.seeds)
        print(flush=True)


if __name__ == "__main__":
    main()
