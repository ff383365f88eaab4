"""Zeros as time: mostly zero linear layers as compressed rows in PyTorch, or packed in OpenVINO's INT8 on
CPUs with AMX, beside the same network dense.

    python -m benchmarks.csr > benchmarks/results/csr.md

Networks of random weights: only time is looked at, end to end, by karui's own bench in one session a table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import karui
from karui.optimize import Settings
from karui.target import Target

SPARSE = "fp32@torch_eager:sparse=true"
WAYS = (
    ("any", "fp32@torch_eager"),
    ("any", SPARSE),
    ("4x4", SPARSE),
    ("any", "fp32@onnxruntime"),
    ("any", "fp32@openvino"),
)
PACKED = tuple(
    ("any", way)
    for way in ("fp32@torch_eager", "int8@onnxruntime", "int8@openvino", "int8@openvino:sparse=true")
)


class FeedForward(nn.Module):
    """The feed-forward half of a transformer block: (n, 32, 256) -> (n, 32, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.back = nn.LayerNorm(256), nn.Linear(256, 1024), nn.Linear(1024, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.back(nn.functional.gelu(self.wide(self.norm(x))))


def wide(*sizes: int) -> nn.Module:
    """Linear layers of these sizes, with ReLU between."""
    layers = [
        nn.Sequential(nn.Linear(one, other), nn.ReLU()) for one, other in itertools.pairwise(sizes[:-1])
    ]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


@dataclass(frozen=True)
class Case:
    """A network, the shape of its input, and patterns of zeros with ways to run them."""

    model: nn.Module
    shape: tuple[int, ...]
    ways: tuple[tuple[str, str], ...] = WAYS


def networks() -> dict[str, Case]:
    torch.manual_seed(0)
    return {
        "MLP 784-1024-1024-10": Case(wide(784, 1024, 1024, 10), (784,)),
        "transformer feed-forward": Case(FeedForward(), (32, 256)),
        "INT8, MLP 4096-4096-4096-4096-10": Case(wide(4096, 4096, 4096, 4096, 10), (4096,), PACKED),
    }


def measured(case: Case, zeros: float, batch: int) -> list[dict]:
    x = torch.randn(256, *case.shape, generator=torch.Generator().manual_seed(0))
    task = karui.Task(case.model.eval(), x[:4], calibrate=[x], select=[x], score="agreement")
    step = f"prune_weights:sparsity={zeros},importance=l1,scope=layer,compensate=false"
    recipes = tuple(f"{step},pattern={json.dumps(pattern)} + {way}" for pattern, way in case.ways)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        found = karui.optimize(
            task, Target("cpu", batch=batch), max_drop=100, out=out, settings=Settings(recipes)
        )
        return [trial for trial in found.facts["trials"] if " + " in trial["recipe"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zeros", nargs="+", type=float, default=[0.8, 0.9, 0.95])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--only", default="", help="networks with this in their names")
    args = parser.parse_args()
    print("# Zeros as time: linear layers as compressed rows in PyTorch\n")
    print("Speed over the dense network in eager PyTorch, one thread, 95 % intervals;")
    print("made by `python -m benchmarks.csr`.")
    for name, case in networks().items():
        if args.only not in name:
            continue
        print(f"\n## {name}\n\n| zeros | pattern | batch | runtime | vs dense eager | |")
        print("|--:|---|--:|---|---|---|")
        for zeros in args.zeros:
            for batch in args.batches:
                for trial in measured(case, zeros, batch):
                    row(zeros, batch, trial)


def row(zeros: float, batch: int, trial: dict) -> None:
    ratio, (step, _, way) = trial.get("speedup"), trial["recipe"].rpartition(" + ")
    pattern = "4x4" if "4x4" in step else "any"
    speed = f"{ratio['ratio']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else ""
    told = trial["executed"].get("detail", "") if ratio else trial["reason"]
    print(f"| {zeros:.0%} | {pattern} | {batch} | `{way}` | {speed} | {told} |", flush=True)


if __name__ == "__main__":
    main()
