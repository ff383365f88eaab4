"""Train the reference networks on the full data and keep the checkpoints in ``data/checkpoints``.

Run ``python -m benchmarks.networks.train [name ...]`` after ``make data``; one thread, seeded, so
that the same torch on the same kind of processor writes the same file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from benchmarks.data import DATA, load
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from karui.demo import networks

CHECKPOINTS = DATA / "checkpoints"
SEED = 0


@dataclass(frozen=True)
class Plan:
    """How to train one network: AdamW, one cycle of the learning rate with its top at ``rate``."""

    network: Callable[[], nn.Module]
    data: str
    epochs: int
    rate: float
    batch: int = 128
    decay: float = 1e-4


PLANS = {
    "mnist": Plan(networks.MnistNet, "mnist", epochs=3, rate=3e-3),
    "fashion": Plan(networks.FashionResNet, "fashion-mnist", epochs=6, rate=1e-2, decay=1e-2),
    "deep": Plan(networks.DeepResNet, "fashion-mnist", epochs=4, rate=1e-2, decay=1e-2),
    "mobile": Plan(networks.MobileNet, "fashion-mnist", epochs=4, rate=1e-2, decay=1e-2),
    "mlp": Plan(networks.Mlp, "mnist", epochs=4, rate=3e-3),
    "lstm": Plan(networks.LstmClassifier, "mnist", epochs=4, rate=1e-2),
    "encoder": Plan(networks.TinyEncoder, "mnist", epochs=4, rate=3e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the reference networks.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(PLANS)}")
    names = parser.parse_args().names or ["mnist", "fashion"]
    if unknown := set(names) - set(PLANS):
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(PLANS)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in names:
        path = make_checkpoint(name)
        print(f"{name}: {path.stat().st_size} bytes in {path}", flush=True)


def make_checkpoint(name: str) -> Path:
    """Train one network of PLANS, report its test accuracy, write its weights."""
    plan = PLANS[name]
    train_set, test_set = load(plan.data)
    start = time.perf_counter()
    model = trained(plan, *as_tensors(*train_set))
    share = accuracy(model, *as_tensors(*test_set))
    duration_s = time.perf_counter() - start
    print(f"{name}: test accuracy {100 * share:.2f} %, {duration_s:.0f} s", flush=True)
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    path = CHECKPOINTS / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def kept(model: nn.Module, path: Path, fit: Callable[[], None]) -> None:
    """Give ``model`` the weights in ``path``; they are those that ``fit`` left in it the first time."""
    if not path.is_file():
        fit()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path))


def trained(plan: Plan, images: Tensor, labels: Tensor) -> nn.Module:
    """A new network of ``plan`` after its epochs, in eval mode."""
    torch.manual_seed(SEED)
    model = plan.network().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=plan.decay)
    steps = plan.epochs * (len(images) // plan.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, total_steps=steps)
    for _ in range(plan.epochs):
        for rows in whole_batches(torch.randperm(len(images)), plan.batch):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def whole_batches(order: Tensor, size: int) -> tuple[Tensor, ...]:
    return order[: len(order) // size * size].split(size)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of right answers, in [0, 1]."""
    answers = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return float((answers == labels).double().mean())


def as_tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 (n, 28, 28) and (n,) to float32 (n, 1, 28, 28) in [0, 1] and int64 (n,)."""
    pixels = torch.from_numpy(images.astype(np.float32) / 255)
    return pixels.unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


if __name__ == "__main__":
    main()
