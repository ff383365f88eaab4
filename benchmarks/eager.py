"""Is the eager baseline fair? The exported program, run eagerly, against the user's own module.

    python -m benchmarks.eager > benchmarks/results/eager.md

Ratios are taken against the artifact ``torch_eager``, which runs the exported program with its guards
taken off. Were it slower than the module a user calls, every ratio would be flattered.
"""

from __future__ import annotations

import copy
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from karui.bench.stats import speed_ratio
from karui.demo import networks
from karui.graph.call import signature_of
from karui.graph.capture import capture
from karui.recipe import Named
from karui.runtimes import load

ROUNDS = 120
NETWORKS = ("MnistNet", "FashionResNet", "Mlp", "LstmClassifier", "TinyEncoder")


def main() -> None:
    torch.set_num_threads(1)
    print("# The eager baseline against the user's own module\n")
    print("Above 1: the exported program is faster, so ratios against it are modest.\n")
    print("| network | batch | module / program | 95 % interval | verdict on the program |")
    print("|---|---|---|---|---|")
    for name in NETWORKS:
        for batch in (1, 64):
            module, program = pair(getattr(networks, name)().eval(), batch)
            found = speed_ratio(*rounds(module, program))
            interval = f"[{found.low:.2f}, {found.high:.2f}]"
            print(f"| {name} | {batch} | {found.ratio:.2f} | {interval} | {found.verdict} |", flush=True)


def pair(model: torch.nn.Module, batch: int) -> tuple[Callable[[], object], Callable[[], object]]:
    example = torch.randn(batch, 1, 28, 28)
    signature, arrays = signature_of(model, example, batch)
    with tempfile.TemporaryDirectory() as folder:
        found = capture(copy.deepcopy(model), signature, arrays, Path(folder))
        predict = load(Named("torch_eager")).load(Path(folder), found, 1)

    @torch.inference_mode()
    def module() -> object:
        return model(torch.from_numpy(arrays[signature.inputs[0].name])).numpy()

    return module, lambda: predict(arrays)


def rounds(*calls: Callable[[], object]) -> list[list[float]]:
    for call in calls:
        block(call)
    found: list[list[float]] = [[] for _ in calls]
    order = list(range(len(calls)))
    for _ in range(ROUNDS):
        random.shuffle(order)
        for i in order:
            found[i].append(block(calls[i]))
    return found


def block(call: Callable[[], object]) -> float:
    call()
    samples = []
    until = time.perf_counter() + 0.01
    while time.perf_counter() < until:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return sorted(samples)[len(samples) // 2]


if __name__ == "__main__":
    main()
