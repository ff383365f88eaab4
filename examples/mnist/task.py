"""What karui needs to know: the trained model, and data to judge it by."""

from __future__ import annotations

import os
from pathlib import Path

from mnist import MnistError, read_set
from net import mnist_net
from safetensors.torch import load_file
from torch.utils.data import Subset

from karui.errors import UsageError
from karui.task import Task

CHECKPOINT = Path(__file__).with_name("mnist.safetensors")


def task() -> Task:
    """MNIST from the folder KARUI_MNIST (default data/mnist), the network from train.py."""
    folder = Path(os.environ.get("KARUI_MNIST", "data/mnist"))
    command = f"python examples/mnist/train.py --data {folder}"
    if not CHECKPOINT.is_file():
        raise UsageError("the network is not trained yet", why=f"no file {CHECKPOINT}", fix=command)
    try:
        train_set, test_set = read_set(folder, "train"), read_set(folder, "t10k")
    except MnistError as problem:
        fix = "set KARUI_MNIST to the folder with the idx files"
        raise UsageError("no MNIST data", why=str(problem), fix=fix) from problem
    model = mnist_net()
    model.load_state_dict(load_file(CHECKPOINT))
    return Task(
        model=model.eval(),
        inputs=train_set.tensors[0][:8],
        calibrate=Subset(train_set, range(300)),
        select=Subset(test_set, range(5000)),
        confirm=Subset(test_set, range(5000, 10000)),
        score="top1",
        name="mnist",
    )
