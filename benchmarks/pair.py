"""A released teacher and its released small sibling: CREPE's tiny network taught by the full one.

    python -m benchmarks.pair > benchmarks/results/pair.md

The tiny network starts from its released weights and sees the same tones in noise, in the same order, by
their labels alone, by both, and by the teacher alone. Needs ``python -m benchmarks.real.packages``.
"""

from __future__ import annotations

import argparse

import torch
from benchmarks.distill import SEEDS, gain, spread
from benchmarks.real import crepe
from torch import Tensor, nn

import karui

FRAMES, STEPS, BATCH, RATE = 640, 80, 32, 3e-4
WAYS = {"labels alone": 0.0, "labels and teacher": 0.5, "teacher alone": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(WORDS, flush=True)
    task = crepe.task()
    print(f"| CREPE full, as released | {share(task.model, task.confirm):.2f} | |", flush=True)
    print(f"| CREPE tiny, as released | {share(crepe.network('tiny'), task.confirm):.2f} | |", flush=True)
    found: dict[str, list[float]] = {}
    for way, weight in WAYS.items():
        found[way] = [share(taught(task, weight, seed), task.confirm) for seed in args.seeds]
        mean, error = gain(found[way], found["labels alone"])
        print(f"| tiny, {way} | {spread(found[way])} | {mean:+.2f} ({error:.2f}) |", flush=True)


def taught(task: karui.Task, weight: float, seed: int) -> nn.Module:
    frames, bins = task.train
    rows = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed))[:FRAMES]
    train = (frames[rows], bins[rows])
    step = f"finetune:steps={STEPS},batch={BATCH},lr={RATE},loss=kd,distill={weight},seed={seed}"
    tiny = crepe.network("tiny")
    return karui.apply(step, tiny, inputs=task.inputs, train=train, teacher=task.model).model


@torch.no_grad()
def share(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Of frames within 50 cents, in percent."""
    frames, bins = data
    scores = torch.cat([model(part) for part in frames.split(50)])
    return 100 * float(crepe.in_tune(scores.numpy(), bins.numpy()).mean())


WORDS = f"""# A released teacher and its small sibling

Share of {crepe.TEST:,} test tones in noise whose pitch is right within 50 cents, in percent: mean and
standard deviation over the seeds, which draw {FRAMES} of the training tones and their order. {STEPS} steps
of {BATCH}, Adam at {RATE:g}. In brackets twice the standard error of the gain.

| network | within 50 cents | gain over labels alone |
|---|--:|--:|"""

if __name__ == "__main__":
    main()
