"""karui Tasks of the reference networks on the full data.

From the root of the repository: ``karui optimize benchmarks.networks.tasks:fashion``. Needs
``make data`` and the checkpoints of ``python -m benchmarks.networks.train``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from benchmarks.data import DATA, DataError, load
from benchmarks.networks.train import CHECKPOINTS, PLANS, as_tensors
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Subset, TensorDataset

from karui.demo import CLASSES
from karui.errors import UsageError
from karui.task import Task

CALIBRATE = 512  # the first of the 60,000 training images
SELECT = 2500  # the first of the 10,000 test images; the others confirm


def mnist() -> Task:
    """The two-convolution network of the reference example."""
    return task("mnist")


def fashion() -> Task:
    """The ResNet with batch norm."""
    return task("fashion")


def deep() -> Task:
    """The ResNet with two blocks a stage."""
    return task("deep")


def mobile() -> Task:
    """The MobileNet with depthwise convolutions."""
    return task("mobile")


def mlp() -> Task:
    return task("mlp")


def lstm() -> Task:
    return task("lstm")


def encoder() -> Task:
    """The small transformer encoder."""
    return task("encoder")


def task(name: str, root: Path = DATA) -> Task:
    """The Task of one network of PLANS.

    Raises UsageError when its data or its checkpoint are not there.
    """
    data = PLANS[name].data
    try:
        train_set, test_set = (TensorDataset(*as_tensors(*part)) for part in load(data, root))
    except DataError as problem:
        raise UsageError(f"no {data} data", why=str(problem), fix="make data") from problem
    return Task(
        model=checkpoint(name),
        inputs=train_set.tensors[0][:8],
        calibrate=Subset(train_set, range(CALIBRATE)),
        select=Subset(test_set, range(SELECT)),
        confirm=Subset(test_set, range(SELECT, len(test_set))),
        score="top1",
        train=train_set,
        name=f"{name} on {data}",
        classes=CLASSES if data == "fashion-mnist" else tuple("0123456789"),
    )


def task_at(place: str) -> Task:
    """What the function at ``module:function`` gives."""
    module, _, function = place.partition(":")
    found: Task = getattr(import_module(module), function)()
    return found


def checkpoint(name: str) -> nn.Module:
    """The trained network, in eval mode."""
    path = CHECKPOINTS / f"{name}.safetensors"
    if not path.is_file():
        fix = f"python -m benchmarks.networks.train {name}"
        raise UsageError(f"{name} is not trained yet", why=f"{path} is not there", fix=fix)
    network = PLANS[name].network()
    network.load_state_dict(load_file(path))
    return network.eval()
