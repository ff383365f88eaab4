"""The textbook's trade-off table on real networks, and what several techniques together reach.

    python -m benchmarks.tradeoff > benchmarks/results/tradeoff.md

One run of ``karui optimize`` for each network at batch 1, with a recipe or more of every technique: its table
is that of ``karui table``. Then what came out best of several techniques together, of single ones and of the
runtimes' own INT8 is timed side by side once more, in batches too.
Needs ``make data``, the checkpoints (``python -m benchmarks.networks.train``) and
``python -m benchmarks.real.packages``.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.networks.tasks import task_at
from torch import Tensor
from torch.utils.data import Dataset

import karui
from karui.bench.compare import compare
from karui.bench.machine import Conditions
from karui.bench.rounds import Pace
from karui.budget import CONFIDENCE
from karui.demo.networks import FashionResNet
from karui.optimize import Settings
from karui.report.kinds import kind_of
from karui.report.markdown import kinds

RUNS = Path("karui-runs")
FINAL = Pace(least=30, most=200, seconds=20.0, openings=5, most_openings=10)
SIDE_BY_SIDE = Pace(least=30, most=200, seconds=20.0, openings=5, most_openings=8)
UNTRAINED = (
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
)
AWARE = "quantize_aware:steps={steps} + int8@onnxruntime"
SPARSE = "prune_weights:sparsity=0.9 + finetune:{recover}"
DISTILLED = "distill:width=0.5,{learn},lr=3e-3,schedule=one_cycle + fp32@onnxruntime"
SEEDS = (0, 1, 2)
SHALLOWER = (  # than the teacher: the task's student, then narrowed
    "distill:epochs=6,seed={seed},loss=dist,batch=128,optimizer=adamw,lr=1e-2,weight_decay=1e-2,schedule=one_cycle"
    " + prune_channels:macs=0.25,multiple_of=8"
)
TRAINED = "finetune:{narrowed},seed={seed},optimizer=adamw,lr={rate:g},weight_decay=1e-2,schedule=one_cycle"


@dataclass(frozen=True)
class Case:
    """A network and what its training may take.

    task: module and function. narrower: shares of the multiplications left. steps: of training for INT8.
    recover, learn, narrowed: length of the training after zeros, of a student's, of a narrower network's.
    rate: of the last. first: steps before that training, instead of all the other trained recipes; they and
    it are run from each of ``seeds``.
    """

    task: str
    narrower: tuple[str, ...]
    narrowed: str
    steps: int = 600
    recover: str = "epochs=1"
    learn: str = "epochs=3"
    rate: float = 1e-2
    first: str = ""
    seeds: tuple[int, ...] = (0,)


CASES = {
    "mnist": Case("benchmarks.networks.tasks:mnist", ("0.125", "0.0625"), "epochs=3,batch=128", seeds=SEEDS),
    "fashion": Case("benchmarks.tradeoff:fashion", ("0.25",), "epochs=14,batch=128"),
    "deep": Case("benchmarks.networks.tasks:deep", ("0.15",), "epochs=8", 200, learn="epochs=1"),
    "taught": Case("benchmarks.tradeoff:taught", (), "epochs=8,batch=128", first=SHALLOWER, seeds=SEEDS),
    "photos": Case(
        "benchmarks.real.photos:task", ("0.25", "0.125"), "epochs=10,batch=128", learn="epochs=10"
    ),
    "vowels": Case(
        "benchmarks.real.vowels:task", ("0.5", "0.25"), "steps=400,batch=32", 200, "steps=100", "steps=400"
    ),
    "minilm": Case(
        "benchmarks.tradeoff:minilm", ("0.75",), "epochs=1,batch=32", 30, "steps=60,lr=1e-4", "steps=90",
        rate=1e-4,
    ),
}  # fmt: skip
COLUMNS = (
    "network", "batch", "which", "recipe", "over eager", "over the fastest peer", "file", "of FP32",
    "points lost", "status",
)  # fmt: skip
SEED = re.compile(r",?seed=\d+")
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


def fashion() -> karui.Task:
    """The ResNet, with images to train on that are turned at random."""
    task = task_at("benchmarks.networks.tasks:fashion")
    return dataclasses.replace(task, train=Turned(*task.train.tensors))


def taught() -> karui.Task:
    """The ResNet with two blocks a stage, and a student with one."""
    task = task_at("benchmarks.networks.tasks:deep")
    return dataclasses.replace(task, student=FashionResNet)


def minilm() -> karui.Task:
    """The encoder with its probe, all of which may learn."""
    task = task_at("benchmarks.real.minilm:task")
    task.model.requires_grad_(True)
    return task


def recipes(case: Case) -> list[str]:
    narrow = [steps for seed in case.seeds for steps in narrowed(case, seed)]
    ends = [
        *(f"{steps} + {precision}@onnxruntime" for steps in narrow for precision in ("fp32", "fp16", "int8")),
        *(f"{steps} + int8@openvino:compress_xml=true" for steps in narrow),
    ]
    return [*UNTRAINED, *([] if case.first else others(case)), *ends]


def narrowed(case: Case, seed: int) -> list[str]:
    """Steps to each narrower network, trained."""
    cuts = [f"prune_channels:macs={share},multiple_of=8" for share in case.narrower]
    trained = TRAINED.format(narrowed=case.narrowed, rate=case.rate, seed=seed)
    return [f"{cut.format(seed=seed)} + {trained}" for cut in ([case.first] if case.first else cuts)]


def others(case: Case) -> list[str]:
    sparse = SPARSE.format(recover=case.recover)
    return [
        AWARE.format(steps=case.steps),
        f"{sparse} + fp32@onnxruntime",
        f"{sparse} + fp32@torch_eager:sparse=true",
        DISTILLED.format(learn=case.learn),
    ]


def measured(name: str, budget: karui.Budget) -> karui.Result:
    folder = RUNS / f"tradeoff_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    return karui.optimize(
        task_at(CASES[name].task),
        karui.Target("cpu"),
        budget=budget,
        out=folder,
        settings=Settings(
            recipes=tuple(recipes(CASES[name])),
            command=f"python -m benchmarks.tradeoff --networks {name}",
            mixed=0,
            pace=Pace(most=80, seconds=5.0),
            final=FINAL,
        ),
    )


def chosen(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Trials by what they are: the fastest peer if one was built, and of those in the budget the fastest and
    the smallest.
    """
    timed = [trial for trial in facts["trials"] if trial["latency_s"]]
    held = [trial for trial in timed if trial["status"] in ("kept", "best")]
    peers = [trial for trial in timed if trial["recipe"].endswith(PEERS)]
    together = [trial for trial in held if kind_of(trial["recipe"]) == "several"]
    single = [trial for trial in held if trial not in together and trial not in peers]
    found = {"a runtime's own INT8": min(peers, key=latency)} if peers else {}
    found["one technique"] = min(single, key=latency)
    if together:
        found |= {"several": min(together, key=latency), "several, smallest": min(together, key=size)}
    return found


def kin(trials: Sequence[dict[str, Any]], best: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The recipe of ``best`` from its other seeds, whatever became of them."""
    alike = [
        trial
        for trial in trials
        if trial["latency_s"] and trial["id"] != best["id"] and unseeded(trial) == unseeded(best)
    ]
    return {f"several, from other numbers ({number})": trial for number, trial in enumerate(alike, 1)}


def unseeded(trial: dict[str, Any]) -> str:
    return SEED.sub("", str(trial["recipe"]))


def latency(trial: dict[str, Any]) -> float:
    return float(trial["latency_s"]["p50"])


def size(trial: dict[str, Any]) -> int:
    return int(trial["size_bytes"])


def lines(result: karui.Result, name: str, batch: int) -> Iterator[str]:
    """The chosen side by side: each against eager, and against the peer, in the same rounds."""
    facts = result.facts
    found = {"eager": trial_of(facts, facts["baseline"]), **chosen(facts)}
    found |= kin(facts["trials"], found["several"]) if "several" in found else {}
    fp32 = size(next(trial for trial in facts["trials"] if trial["recipe"] == "fp32@onnxruntime"))
    homes = [result.folder / trial["artifact"] for trial in found.values()]
    over_eager = compare(homes, Conditions(batch), SIDE_BY_SIDE)
    peer = next((trial for trial in found.values() if trial["recipe"].endswith(PEERS)), None)
    over_peer = compare(homes[1:], Conditions(batch), SIDE_BY_SIDE) if peer else [None] * len(homes[1:])
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
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--confidence", type=float, default=CONFIDENCE)
    args = parser.parse_args()
    budget = karui.Budget(max_drop=args.max_drop, confidence=args.confidence)
    print("# The textbook's trade-off table, measured\n")
    together = []
    for name in args.networks:
        result = measured(name, budget)
        print(f"## {name}\n\n{kinds(result.facts)}", flush=True)
        together += [row for batch in args.batches for row in lines(result, name, batch)]
    print(f"## Together\n\n{line(COLUMNS)}\n{line(['---'] * len(COLUMNS))}")
    print("\n".join(together), flush=True)


if __name__ == "__main__":
    main()
