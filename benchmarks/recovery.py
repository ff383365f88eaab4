"""Zeros and narrower layers with training after them: karui beside loops of torch.nn.utils.prune.

    python -m benchmarks.recovery > benchmarks/results/recovery.md

Needs ``make data`` and ``python -m benchmarks.networks.train mnist fashion deep``. One thread, seeded.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.distill import spread
from benchmarks.networks import tasks
from benchmarks.networks.train import PLANS
from benchmarks.zeros import onnx_bytes, weighted, zeros
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import karui
from karui.task import Task

SEEDS = (0, 1, 2)
IMAGES = 10_000  # of an epoch here, drawn by the seed; the last part takes all 60,000
CALIBRATION = 1000
BATCH, RATE = 64, 1e-3
SHARES = (0.8, 0.9, 0.95)
EPOCHS = 4  # of every way to a share of zeros
FAR = (  # five epochs in all: 60,000 images in batches of 64
    'iterative:prune="prune_weights:sparsity=0.95,samples=1000",rounds=2,schedule=cubic,'
    'recover=["finetune:seed={seed},steps=2344,lr=1e-2,optimizer=adamw,weight_decay=1e-2,schedule=one_cycle"]'
)


@dataclass(frozen=True)
class Case:
    """A trained network and its data; ``select`` chooses, ``test`` is what is reported."""

    name: str
    model: nn.Module
    train: tuple[Tensor, Tensor]
    select: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def drawn(self, seed: int) -> tuple[Tensor, Tensor]:
        images, labels = self.train
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:IMAGES]
        return images[rows], labels[rows]

    def made(self, steps: str, train: tuple[Tensor, Tensor]) -> nn.Module:
        """What karui makes by a recipe's steps."""
        images = self.train[0]
        calibrate = [images[:CALIBRATION]]
        return karui.apply(
            steps, self.model, inputs=images[:8], calibrate=calibrate, train=train, teacher=self.model
        ).model


def case_of(name: str) -> Case:
    task = tasks.task(name)
    select, test = (stacked(split) for split in (task.select, task.confirm))
    return Case(name, task.model, task.train.tensors, select, test)


def stacked(split: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    rows = [split[i] for i in range(len(split))]
    return torch.stack([image for image, _ in rows]), torch.stack([answer for _, answer in rows])


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    images, answers = data
    found = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return 100 * float((found == answers).double().mean())


def trained(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, seed: int) -> None:
    """The loop that a user writes: Adam on the labels."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    images, answers = data
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[rows]), answers[rows]).backward()
            optimizer.step()
    model.eval()


def by_norms(model: nn.Module, data: tuple[Tensor, Tensor], seed: int) -> None:
    for part in weighted(model):
        if isinstance(part, nn.Conv2d):
            prune.ln_structured(part, "weight", amount=0.5, n=2, dim=0)
    trained(model, data, 3, seed)


def at_once(model: nn.Module, data: tuple[Tensor, Tensor], seed: int) -> None:
    masked(model, 0.3)
    trained(model, data, 3, seed)


def in_steps(model: nn.Module, data: tuple[Tensor, Tensor], seed: int) -> None:
    for step in range(9):
        masked(model, 0.1 / (1 - 0.1 * step))  # of what is left
        trained(model, data, 1, seed + step)


def masked(model: nn.Module, amount: float) -> None:
    parts = [(part, "weight") for part in weighted(model)]
    prune.global_unstructured(parts, pruning_method=prune.L1Unstructured, amount=amount)


NINE = 'iterative:prune="prune_weights:sparsity=0.9",rounds=9,schedule=linear'
ITERATED = f'{NINE},recover=["finetune:epochs=1"]'
HALVED = "prune_channels:ratio=0.5 + finetune:epochs=3"
LOOPS: tuple[tuple[str, Callable[[nn.Module, tuple[Tensor, Tensor], int], None], str], ...] = (
    ("ln_structured, half of each convolution, 3 epochs", by_norms, HALVED),
    ("global_unstructured 30 %, 3 epochs", at_once, "prune_weights:sparsity=0.3 + finetune:epochs=3"),
    ("to 90 % by steps of 10 %, an epoch each", in_steps, ITERATED),
)  # fmt: skip


def loops(case: Case, seeds: Sequence[int]) -> None:
    """(a) Three loops of the tutorials, and the line of karui that stands for each."""
    row(
        "network",
        "loop",
        "torch.nn.utils.prune",
        "karui",
        "karui's line",
        "difference",
        "s, loop",
        "s, karui",
    )
    row("---", "---", "--:", "--:", "---", "--:", "--:", "--:")
    for words, loop, steps in LOOPS:
        theirs, ours, seconds = [], [], [0.0, 0.0]
        for seed in seeds:
            data, start = case.drawn(seed), time.perf_counter()
            twin = copy.deepcopy(case.model)
            loop(twin, data, seed)
            between = time.perf_counter()
            made = case.made(steps.replace("epochs=", f"seed={seed},epochs="), data)
            seconds = [seconds[0] + between - start, seconds[1] + time.perf_counter() - between]
            theirs.append(accuracy(twin, case.test))
            ours.append(accuracy(made, case.test))
        gains = [one - other for one, other in zip(ours, theirs)]
        mean_s = [f"{spent / len(seeds):.0f}" for spent in seconds]
        row(
            case.name,
            words,
            spread(theirs),
            spread(ours),
            f"`{steps}`",
            f"{statistics.mean(gains):+.2f}",
            *mean_s,
        )


def ways_to(share: float, seed: int) -> dict[str, str]:
    """Recipes of equal epochs in all."""
    prune_to = f"prune_weights:sparsity={share}"
    in_rounds = f'iterative:prune="{prune_to}",rounds={EPOCHS}'
    train = f"finetune:seed={seed},epochs"
    return {
        "one-shot": f"{prune_to} + {train}={EPOCHS}",
        "iterative": f'{in_rounds},schedule=geometric,recover=["{train}=1"]',
        "gradual": f'{in_rounds},schedule=cubic,recover=["{train}=1,schedule=constant"]',
    }


def ways(case: Case, seeds: Sequence[int]) -> None:
    """(b) One-shot, iterative, gradual; the one that validation picks; the dense sibling."""
    names = list(ways_to(0.5, 0))
    row("network", "zeros", *names, "picked by validation", "dense sibling", "its parameters")
    row("---", *["--:"] * (len(names) + 4))
    for share in SHARES:
        tested: dict[str, list[float]] = {name: [] for name in names}
        picked, sibling, kept = [], [], ""
        for seed in seeds:
            data = case.drawn(seed)
            made = {name: case.made(steps, data) for name, steps in ways_to(share, seed).items()}
            for name, model in made.items():
                tested[name].append(accuracy(model, case.test))
            best = max(made, key=lambda name: accuracy(made[name], case.select))
            picked.append(tested[best][-1])
            narrow = case.made(sibling_of(case, share, seed), case.train)
            sibling.append(accuracy(narrow, case.test))
            kept = f"{100 * parameters(narrow) / parameters(case.model):.1f} %"
        shown = [spread(tested[name]) for name in names]
        row(case.name, f"{100 * share:.0f} %", *shown, spread(picked), spread(sibling), kept)


def sibling_of(case: Case, share: float, seed: int) -> str:
    """A dense copy with about as many weights as are not zero, trained for all steps of both."""
    plan = PLANS[case.name]
    samples = plan.epochs * len(case.train[0]) + EPOCHS * IMAGES
    width, steps = (1 - share) ** 0.5, samples // BATCH
    return f"distill:width={width:.3f},start=fresh,seed={seed},steps={steps}"


def parameters(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())


def far(case: Case, seeds: Sequence[int]) -> None:
    """(c) Nineteen of twenty weights gone, five epochs of recovery, and what the files weigh."""
    whole, (dense, _) = accuracy(case.model, case.test), onnx_bytes_of(case.model, case)
    row("network", "seed", "zeros", "before", "after", "points lost", "s", "FP32 file", "packed",
        "of dense", "INT8, packed", "of dense", "points lost, INT8")  # fmt: skip
    row("---", *["--:"] * 12)
    for seed in seeds:
        start = time.perf_counter()
        made = case.made(FAR.format(seed=seed), case.train)
        seconds = time.perf_counter() - start
        found, (_, packed) = accuracy(made, case.test), onnx_bytes_of(made, case)
        size, lost = int8(made, case)
        row(case.name, str(seed), f"{100 * zeros(made):.1f} %", f"{whole:.2f}", f"{found:.2f}",
            f"{whole - found:.2f}", f"{seconds:.0f}", f"{dense:,} B", f"{packed:,} B",
            f"1/{dense / packed:.1f}", f"{size:,} B", f"1/{dense / size:.1f}",
            f"{whole - lost:.2f}")  # fmt: skip


def onnx_bytes_of(model: nn.Module, case: Case) -> tuple[int, int]:
    from benchmarks.channels import Data

    return onnx_bytes(model, Data(*case.train, *case.test))


def int8(model: nn.Module, case: Case) -> tuple[int, float]:
    """Bytes of the packed INT8 file for ONNX Runtime, and its accuracy there."""
    import numpy as np

    images, answers = case.test
    task = Task(model=model, inputs=images[:8], calibrate=[case.train[0][:512]], select=[(images, answers)])
    with tempfile.TemporaryDirectory() as folder:
        [told] = karui.quantize(task, "int8@onnxruntime", Path(folder) / "out")
        predict = karui.load(told["artifact"])
        found = np.concatenate([np.asarray(predict(batch)).argmax(1) for batch in images.split(500)])
        return told["size_bytes"], 100 * float((found == answers.numpy()).mean())


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


Part = Callable[[Case, Sequence[int]], None]
PARTS: dict[str, tuple[str, tuple[str, ...], Part]] = {
    "loops": (
        f"""## Loops of the tutorials, and a line of karui

Equal epochs of {IMAGES:,} labelled images, batches of {BATCH}, Adam at {RATE:g}. The loops learn from the
labels; karui's default learns half from them and half from the network before pruning. `ln_structured` leaves
channels of zeros, `prune_channels` takes channels out.
""",
        ("mnist", "fashion"),
        loops,
    ),
    "ways": (
        f"""## One-shot, iterative, gradual, and the dense sibling

{EPOCHS} epochs of {IMAGES:,} images each. Iterative: {EPOCHS} rounds, the same share of what is left in each,
the learning rate up again in each; gradual: {EPOCHS} rounds, much at first, a constant rate. Validation is on
{tasks.SELECT:,} images, the figures are of the 7,500 others. The sibling is a dense copy of the network with
about as many weights as are not zero, from fresh weights, with labels and teacher, for as many samples as
the original's training and the recovery took together.
""",
        ("mnist", "fashion"),
        ways,
    ),
    "far": (
        f"""## Nineteen of twenty weights gone

`{FAR.replace("seed={seed},", "")}`
on the ResNet with two blocks a stage: five epochs in all, of all images. Then its file for ONNX Runtime in
FP32 and in INT8, in bytes on disk.
""",
        ("deep",),
        far,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--networks", nargs="+", default=["mnist", "fashion", "deep"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("# Recovery\n\nTest accuracy in percent, mean and standard deviation over the seeds.\n")
    for part in args.parts:
        words, networks, table = PARTS[part]
        print(words, flush=True)
        for name in (one for one in networks if one in args.networks):
            table(case_of(name), args.seeds)
            print(flush=True)


if __name__ == "__main__":
    main()
