"""Zeros with no training and no labels, beside torch.nn.utils.prune, on the same networks.

    python -m benchmarks.zeros > benchmarks/results/zeros.md

Needs ``make data`` and the checkpoints ``mnist`` and ``deep`` (python -m benchmarks.networks.train mnist
deep). The peer is ``global_unstructured`` by L1 norm, as in PyTorch's tutorial, alone and with the statistics
of batch norms estimated again on the same images.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path

import torch
from benchmarks.channels import CALIBRATION, Data, accuracy, data_of
from benchmarks.distill import spread
from benchmarks.networks import tasks
from torch import Tensor, nn
from torch.nn.utils import prune as peer

import karui
from karui.graph.call import signature_of
from karui.graph.capture import capture
from karui.graph.onnx import export_onnx
from karui.graph.onnx_zeros import pack

SHARES = (0.8, 0.9, 0.95)
DRAWS = (0, 1, 2)  # of the images that karui's shares of zeros are fitted on
PATTERNS = ("2:4", "4:8", "kernel", "row", "4x1")


def weighted(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]


def by_peer(model: nn.Module, share: float) -> nn.Module:
    twin = copy.deepcopy(model)
    parts = [(part, "weight") for part in weighted(twin)]
    peer.global_unstructured(parts, pruning_method=peer.L1Unstructured, amount=share)
    for part, name in parts:
        peer.remove(part, name)
    return twin.eval()


@torch.no_grad()
def renormed(model: nn.Module, data: Data) -> nn.Module:
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in data.images.split(100) if norms else ():
        model(batch)
    return model.eval()


def by_karui(model: nn.Module, images: Tensor, options: str) -> tuple[nn.Module, float]:
    start = time.perf_counter()
    step = f"prune_weights:{options},samples={CALIBRATION}"
    found = karui.apply(step, model, inputs=images[:8], calibrate=[images]).model
    return found, time.perf_counter() - start


def drawn(task: tasks.Task, seed: int) -> Tensor:
    images: Tensor = task.train.tensors[0]
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[rows[:CALIBRATION]]


def zeros(model: nn.Module) -> float:
    found = [part.weight for part in weighted(model)]
    return sum(int((w == 0).sum()) for w in found) / sum(w.numel() for w in found)


def onnx_bytes(model: nn.Module, data: Data) -> tuple[int, int]:
    """A plain FP32 file, and the same file packed."""
    signature, example = signature_of(model, data.images[:8], 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out" / "model.onnx"
        path.parent.mkdir()
        capture(copy.deepcopy(model), signature, example, Path(folder))
        export_onnx(Path(folder), signature, path)
        plain = path.stat().st_size
        return plain, plain - pack(path)


def row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def table(name: str) -> None:
    task = tasks.task(name)
    model, data = task.model, data_of(task)
    whole = accuracy(model, data)
    print(f"\n## {name}: {whole:.2f} % on {len(data.answers):,} test images\n")
    row(["zeros", "how", "points lost", "ONNX FP32, dense", "packed", "seconds"])
    row(["--:", "---", "--:", "--:", "--:", "--:"])

    def told(how: str, *made: tuple[nn.Module, float]) -> None:
        lost = [whole - accuracy(one, data) for one, _ in made]
        seconds = sum(spent for _, spent in made) / len(made)
        first = made[0][0]
        plain, packed = onnx_bytes(first, data)
        row([f"{100 * zeros(first):.1f} %", how, spread(lost), f"{plain:,} B", f"{packed:,} B",
             f"{seconds:.0f}" if seconds else ""])  # fmt: skip

    for share in SHARES:
        told("torch.nn.utils.prune, global L1", (by_peer(model, share), 0.0))
        told("the same, norms estimated again", (renormed(by_peer(model, share), data), 0.0))
        told("karui", *(by_karui(model, drawn(task, seed), f"sparsity={share}") for seed in DRAWS))
    for pattern in PATTERNS:
        goal = "" if ":" in pattern else ",sparsity=0.8"
        told(f"karui, pattern {pattern}", by_karui(model, data.images, f'pattern="{pattern}"{goal}'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["mnist", "deep"])
    args = parser.parse_args()
    print("# Zeros with no training and no labels\n")
    print(f"{CALIBRATION:,} unlabelled training images; ±: mean and deviation of {len(DRAWS)} draws of them.")
    print("Made by `python -m benchmarks.zeros`.")
    for name in args.networks:
        table(name)


if __name__ == "__main__":
    main()
