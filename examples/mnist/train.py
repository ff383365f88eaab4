"""Train the reference network on MNIST, save it, load it back, check that nothing changed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mnist import MnistError, download, read_set
from net import mnist_net
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

OPTIMIZERS = {
    "adam": lambda weights: torch.optim.Adam(weights, lr=1e-3),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9),
}


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    try:
        if options.download:
            download(options.data)
        train_set, test_set = read_set(options.data, "train"), read_set(options.data, "t10k")
    except MnistError as problem:
        otherwise = "check the connection" if options.download else "add --download"
        fix = f"give --data a folder with the four idx files, or {otherwise}"
        print(f"no MNIST in {options.data}\n  why: {problem}\n  try: {fix}", file=sys.stderr)
        return 1
    torch.manual_seed(options.seed)
    model = mnist_net()
    train(model, train_set, options)
    save_file(model.state_dict(), options.out)
    again = mnist_net()
    again.load_state_dict(load_file(options.out))
    before, after = accuracy(model, test_set), accuracy(again, test_set)
    print(f"test accuracy {100 * before:.2f} %; loaded back: {100 * after:.2f} %, {options.out}")
    return 0 if before == after else 1


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/mnist"), help="folder of idx files")
    parser.add_argument("--download", action="store_true", help="download what is missing there")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("mnist.safetensors"))
    return parser.parse_args(words)


def train(model: nn.Module, data: TensorDataset, options: argparse.Namespace) -> None:
    optimizer = OPTIMIZERS[options.optimizer](model.parameters())
    for epoch in range(options.epochs):
        for images, labels in DataLoader(data, batch_size=128, shuffle=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1} of {options.epochs}: last loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    model.eval()
    batches = DataLoader(data, batch_size=500)
    right = [model(images).argmax(1) == labels for images, labels in batches]
    return float(torch.cat(right).double().mean())


if __name__ == "__main__":
    sys.exit(main())
