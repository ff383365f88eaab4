"""The textbook's trade-off table on real networks, and what several techniques together reach.

    python -m benchmarks.tradeoff > benchmarks/results/tradeoff.md

One run of ``karui optimize`` for each network at batch 1, with a recipe or more of every technique: its table
is that of ``karui table``. Then what came out best of several techniques together, of single ones and of the
runtimes' own INT8 is timed side by side once more, in batches too.
Needs ``make data`` and the checkpoints (``python -m benchmarks.networks.train``).
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.networks import tasks
from torch import Tensor
from torch.utils.data import Dataset

import karui
from karui.bench.compare import compare
from karui.bench.machine import Conditions
from karui.bench.rounds import Pace
from karui.optimize import Settings
from karui.report.kinds import kind_of
from karui.report.markdown import kinds

RUNS = Path("karui-runs")
FINAL = Pace(least=30, most=200, seconds=20.0, openings=5, most_openings=10)
SIDE_BY_SIDE = Pace(least=30, most=200, seconds=20.0, openings=5, most_openings=8)
ALONE = (
    "fp32@torch_eager",
    "fp32@torch_compile",
    "fp32@onnxruntime",
    "fp32@openvino",
    "fp16@onnxruntime",
    "bf16@openvino",
    "int8@onnxruntime",
    "int8@openvino",
    "int8_dynamic@onnxruntime",
    "int8@onnxruntime:quantizer=onnxruntime",
    "int8@openvino:quantizer=nncf",
    "quantize_aware:steps=600 + int8@onnxruntime",
    "prune_weights:sparsity=0.9 + finetune:epochs=1 + fp32@onnxruntime",
    "prune_weights:sparsity=0.9 + finetune:epochs=1 + fp32@torch_eager:sparse=true",
)
NARROWER = {"mnist": ("0.125", "0.0625"), "fashion": ("0.25",)}  # shares of the multiplications left
TRAINED = "finetune:epochs={epochs},batch=128,optimizer=adamw,lr=1e-2,weight_decay=1e-2,schedule=one_cycle"
EPOCHS = {"mnist": 3, "fashion": 14}
COLUMNS = (
    "network", "batch", "which", "recipe", "over eager", "over the fastest peer", "file", "of FP32",
    "points lost", "status",
)  # fmt: skip
PEERS = ("quantizer=onnxruntime", "quantizer=nncf")


class Turned(Dataset[tuple[Tensor, Tensor]]):
    """Images of clothes, half of them drawn as in a mirror: what a user's own training data would do."""

    def __init__(self, images: Tensor, answers: Tensor) -> None:
        self.images, self.answers = images, answers

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image = self.images[row]
        return (image.flip(-1) if torch.rand(()) < 0.5 else image), self.answers[row]


def task_of(name: str) -> karui.Task:
    task = tasks.task(name)
    return dataclasses.replace(task, train=Turned(*task.train.tensors)) if name == "fashion" else task


def fashion() -> karui.Task:
    """The ResNet, with images to train on that are turned at random."""
    return task_of("fashion")


def recipes(name: str) -> list[str]:
    trained = TRAINED.format(epochs=EPOCHS[name])
    narrow = [f"prune_channels:macs={share},multiple_of=8 + {trained}" for share in NARROWER[name]]
    return [
        *ALONE,
        "distill:width=0.5,epochs=3,lr=3e-3,schedule=one_cycle + fp32@onnxruntime",
        *(f"{steps} + {precision}@onnxruntime" for steps in narrow for precision in ("fp32", "fp16", "int8")),
        *(f"{steps} + int8@openvino" for steps in narrow),
    ]


def measured(name: str, max_drop: float) -> karui.Result:
    folder = RUNS / f"tradeoff_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    return karui.optimize(
        task_of(name),
        karui.Target("cpu"),
        budget=karui.Budget(max_drop=max_drop),
        out=folder,
        settings=Settings(
            recipes=tuple(recipes(name)),
            command=f"python -m benchmarks.tradeoff --networks {name}",
            mixed=0,
            pace=Pace(most=80, seconds=5.0),
            final=FINAL,
        ),
    )


def chosen(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Trials by what they are: the fastest peer, then of those in the budget the fastest and smallest."""
    timed = [trial for trial in facts["trials"] if trial["latency_s"]]
    held = [trial for trial in timed if trial["status"] in ("kept", "best")]
    peers = [trial for trial in timed if trial["recipe"].endswith(PEERS)]
    together = [trial for trial in held if kind_of(trial["recipe"]) == "several"]
    single = [trial for trial in held if trial not in together and trial not in peers]
    found = {"a runtime's own INT8": min(peers, key=latency), "one technique": min(single, key=latency)}
    if together:
        found |= {"several": min(together, key=latency), "several, smallest": min(together, key=size)}
    return found


def latency(trial: dict[str, Any]) -> float:
    return float(trial["latency_s"]["p50"])


def size(trial: dict[str, Any]) -> int:
    return int(trial["size_bytes"])


def lines(result: karui.Result, name: str, batch: int) -> Iterator[str]:
    """The chosen side by side: each against eager, and against the peer, in the same rounds."""
    facts = result.facts
    found = {"eager": trial_of(facts, facts["baseline"]), **chosen(facts)}
    fp32 = size(next(trial for trial in facts["trials"] if trial["recipe"] == "fp32@onnxruntime"))
    eager, peer, *others = (result.folder / trial["artifact"] for trial in found.values())
    over_eager = compare([eager, peer, *others], Conditions(batch), SIDE_BY_SIDE)
    over_peer = compare([peer, *others], Conditions(batch), SIDE_BY_SIDE)
    for (words, trial), one, other in zip(found.items(), over_eager, [None, *over_peer], strict=True):
        cells = (
            name, str(batch), words, f"`{trial['recipe']}`", ratio(one), ratio(other) if other else "-",
            f"{size(trial):,} B", f"1/{fp32 / size(trial):.1f}",
            f"{100 * trial['quality']['drop']:.2f}", f"{trial['status']}: {trial['reason']}",
        )  # fmt: skip
        yield line(cells)


def trial_of(facts: dict[str, Any], key: str) -> dict[str, Any]:
    return next(trial for trial in facts["trials"] if trial["id"] == key)


def ratio(row: dict[str, Any]) -> str:
    found = row["speedup"]
    return f"{found['ratio']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NARROWER), choices=NARROWER)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--max-drop", type=float, default=1.0)
    args = parser.parse_args()
    print("# The textbook's trade-off table, measured\n")
    together = []
    for name in args.networks:
        result = measured(name, args.max_drop)
        print(f"## {name}\n\n{kinds(result.facts)}", flush=True)
        together += [row for batch in args.batches for row in lines(result, name, batch)]
    print(f"## Together\n\n{line(COLUMNS)}\n{line(['---'] * len(COLUMNS))}")
    print("\n".join(together), flush=True)


if __name__ == "__main__":
    main()
