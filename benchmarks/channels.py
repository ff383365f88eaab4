"""Channels removed with no training and no labels, beside norms alone and Torch-Pruning, on the same
networks.

    python -m benchmarks.channels > benchmarks/results/channels.md

Needs ``make data`` and the checkpoints ``mnist`` and ``deep`` (python -m benchmarks.networks.train mnist
deep). The peer takes part where it is installed (pip install torch-pruning==1.6.1); its Taylor importance
sees
labels.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
import warnings
from dataclasses import dataclass

import torch
from benchmarks.networks import tasks
from benchmarks.networks.train import PLANS, SEED, trained
from torch import Tensor, nn
from torch.nn import functional

from karui import techniques
from karui.graph.call import signature_of
from karui.graph.inspect import macs, private_copy
from karui.graph.narrower import narrower, start_anew
from karui.recipe import parse_named

CALIBRATION = 1000  # unlabelled training images

MNIST = (
    ("L1 norm alone", "importance=ln,norm=1,compensate=false"),
    ("L2 norm alone", "importance=ln,norm=2,compensate=false"),
    ("L-infinity norm alone", "importance=ln,norm=inf,compensate=false"),
    ("L1 norm + least squares", "importance=ln,norm=1"),
    ("L2 norm + least squares", "importance=ln,norm=2"),
    ("L-infinity norm + least squares", "importance=ln,norm=inf"),
    ("OBS + least squares", ""),
)
SIBLING = "dense network, trained from the start"
RESNET = (("L2 norm alone", "importance=ln,compensate=false"), ("OBS + least squares", ""))


@dataclass(frozen=True)
class Data:
    """Calibration images and labels (the peer's Taylor uses these), and the whole test set."""

    images: Tensor
    labels: Tensor
    test: Tensor
    answers: Tensor


def data_of(task: tasks.Task) -> Data:
    parts = [split[i] for split in (task.select, task.confirm) for i in range(len(split))]
    return Data(
        task.train.tensors[0][:CALIBRATION],
        task.train.tensors[1][:CALIBRATION],
        torch.stack([x for x, _ in parts]),
        torch.stack([y for _, y in parts]),
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    found = torch.cat([model(batch).argmax(1) for batch in data.test.split(500)])
    return 100 * float((found == data.answers).double().mean())


def karui_pruned(model: nn.Module, data: Data, options: str) -> nn.Module:
    copied = private_copy(model)
    signature, example = signature_of(copied, data.images[:8], 1)
    given = techniques.Given(example, {signature.inputs[0].name: data.images.numpy()}, signature)
    return techniques.load(parse_named(f"prune_channels:{options}")).apply(copied, given).model


def peer_pruned(model: nn.Module, data: Data, kind: str, share: float) -> nn.Module:
    """Torch-Pruning at the ratio that leaves this share of the MACs, then batch norm statistics anew."""
    low, high, best = 0.0, 0.95, copy.deepcopy(model)
    for _ in range(7):
        ratio = (low + high) / 2
        made = peer_at(model, data, kind, ratio)
        if cost(made, data) > share * cost(model, data):
            low = ratio
        else:
            high, best = ratio, made
    return renormed(best, data)


def peer_at(model: nn.Module, data: Data, kind: str, ratio: float) -> nn.Module:
    import torch_pruning as tp

    twin = copy.deepcopy(model)
    importance = (
        tp.importance.GroupTaylorImportance()
        if kind == "taylor"
        else tp.importance.GroupMagnitudeImportance(p=2)
    )
    heads = [m for m in twin.modules() if isinstance(m, nn.Linear)][-1:]
    pruner = tp.pruner.BasePruner(
        twin, data.images[:2], importance=importance, pruning_ratio=ratio, ignored_layers=heads,
        global_pruning=True,
    )  # fmt: skip
    if kind == "taylor":
        functional.cross_entropy(twin(data.images), data.labels).backward()
    pruner.step()
    return twin.eval()


@torch.no_grad()
def renormed(model: nn.Module, data: Data) -> nn.Module:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    if norms:
        model.train()
        for batch in data.images.split(250):
            model(batch)
    return model.eval()


def cost(model: nn.Module, data: Data) -> int:
    return macs(model, (data.images[:1],), {})


def sibling(name: str, model: nn.Module, data: Data, share: float) -> nn.Module:
    """The network with all layers equally narrower, at most at this share of the MACs, trained as it was."""
    signature, example = signature_of(private_copy(model), data.images[:8], 1)
    most = share * cost(model, data)
    for percent in range(99, 0, -1):
        made = narrower(model, signature, example, percent / 100).cut.model
        if cost(made, data) <= most:
            break
    start_anew(made, SEED)
    images, labels = tasks.task(name).train.tensors
    return trained(dataclasses.replace(PLANS[name], network=lambda: made), images, labels)


def rows(
    name: str, data: Data, goals: list[tuple[str, str]], ways: tuple[tuple[str, str], ...], *, siblings: bool
) -> None:
    model = tasks.checkpoint(name)
    base, whole = accuracy(model, data), cost(model, data)
    print(f"Before pruning: {base:.2f} % on {len(data.answers):,} test images, {whole:,} MACs.\n")
    print("| goal | how | MACs | accuracy | points lost | seconds |")
    print("|---|---|--:|--:|--:|--:|")
    for title, goal in goals:
        share = 1.0
        for way, options in ways:
            start = time.perf_counter()
            made = karui_pruned(model, data, f"{goal},{options}".strip(","))
            share = cost(made, data) / whole
            print(line(title, way, made, data, (base, whole, time.perf_counter() - start)), flush=True)
        for kind in peers():
            print(peer_line(title, kind, model, data, (base, whole, share)), flush=True)
        if siblings:
            start = time.perf_counter()
            made = sibling(name, model, data, share)
            seconds = time.perf_counter() - start
            print(line(title, SIBLING, made, data, (base, whole, seconds)), flush=True)


def peer_line(title: str, kind: str, model: nn.Module, data: Data, known: tuple[float, int, float]) -> str:
    """The peer, at the share of MACs that karui's last way left."""
    base, whole, share = known
    name, start = f"Torch-Pruning, {kind}, norms re-estimated", time.perf_counter()
    try:
        made = peer_pruned(model, data, kind, share)
    except Exception as error:  # noqa: BLE001 - a peer that fails is a row that says so
        return f"| {title} | {name} | | | | failed: {type(error).__name__}: {error} |"
    return line(title, name, made, data, (base, whole, time.perf_counter() - start))


def line(title: str, name: str, made: nn.Module, data: Data, known: tuple[float, int, float]) -> str:
    base, whole, seconds = known
    score, left = accuracy(made, data), whole / cost(made, data)
    return f"| {title} | {name} | 1/{left:.2f} | {score:.2f} | {base - score:+.2f} | {seconds:.0f} |"


def peers() -> list[str]:
    try:
        import torch_pruning  # noqa: F401
    except ImportError:
        return []
    return ["magnitude", "taylor"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["mnist", "resnet"])
    parser.add_argument("--no-siblings", action="store_true", help="leave the training of dense networks out")
    args = parser.parse_args()
    parts, siblings = args.parts, not args.no_siblings
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("# Channels removed, with no training\n")
    print(f"{CALIBRATION:,} unlabelled calibration images, one thread, one seed. ", end="")
    print("The peer gets the MACs that the last row of karui left, and may use labels (Taylor). The dense")
    print("network is the same one with all layers equally narrower, at its own MACs, trained on all 60,000")
    print("labelled images for as long as the network that is pruned was.\n")
    if "mnist" in parts:
        print("## The MNIST network, both convolutions\n")
        task = tasks.task("mnist")
        shares = (("50 %", 0.5), ("75 %", 0.75))
        ratios = [(f"{share} of the channels out", f"ratio={ratio}") for share, ratio in shares]
        rows("mnist", data_of(task), ratios, MNIST, siblings=siblings)
    if "resnet" in parts:
        print("\n## The Fashion-MNIST ResNet with two blocks a stage, inner and coupled channels\n")
        task = tasks.task("deep")
        goals = [
            (f"MACs / {word}", f"macs={share}") for word, share in (("1.33", 0.75), ("2", 0.5), ("4", 0.25))
        ]
        rows("deep", data_of(task), goals, RESNET, siblings=siblings)


if __name__ == "__main__":
    main()
