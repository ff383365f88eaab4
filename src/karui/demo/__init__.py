"""The job of ``karui demo``: a trained ResNet and a part of Fashion-MNIST, inside the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.task import Task

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.data import TensorDataset

    from karui.demo.networks import FashionResNet

    Array = np.ndarray[Any, Any]

FOLDER = Path(__file__).parent
CALIBRATE = 300  # of the 4,000 training images: as many as static INT8 usually needs
SELECT = 1000  # of the 2,000 test images; the others confirm
CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True)
class DemoArrays:
    """Images float32 (n, 1, 28, 28) in [0, 1], labels int64 (n,); 4,000 to train, 2,000 to test.

    The ten classes take turns (0, 1, ... 9, 0, 1, ...), so that any run of samples is balanced.
    """

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def task() -> Task:
    """The demo's job, ready for ``karui.optimize``."""
    arrays = load_arrays()
    train = dataset(arrays.train_images, arrays.train_labels)
    return Task(
        model=model,
        inputs=train.tensors[0][:8],
        calibrate=dataset(arrays.train_images[:CALIBRATE], arrays.train_labels[:CALIBRATE]),
        select=dataset(arrays.test_images[:SELECT], arrays.test_labels[:SELECT]),
        confirm=dataset(arrays.test_images[SELECT:], arrays.test_labels[SELECT:]),
        score="top1",
        train=train,
        name="fashion-mnist demo",
        classes=CLASSES,
    )


def model() -> FashionResNet:
    """The ResNet trained on all 60,000 training images, in eval mode."""
    from safetensors.torch import load_file

    from karui.demo.networks import FashionResNet

    network = FashionResNet()
    network.load_state_dict(load_file(FOLDER / "fashion_resnet.safetensors"))
    return network.eval()


def load_arrays() -> DemoArrays:
    """The shipped part of Fashion-MNIST."""
    import numpy as np

    with np.load(FOLDER / "fashion.npz", allow_pickle=False) as stored:
        return DemoArrays(
            train_images=pixels(stored["train_images"]),
            train_labels=stored["train_labels"].astype(np.int64),
            test_images=pixels(stored["test_images"]),
            test_labels=stored["test_labels"].astype(np.int64),
        )


def pixels(images: Array) -> Array:
    """uint8 (n, 28, 28) to float32 (n, 1, 28, 28) in [0, 1]."""
    import numpy as np

    return (images.astype(np.float32) / 255)[:, None]


def dataset(images: Array, labels: Array) -> TensorDataset:
    import torch
    from torch.utils.data import TensorDataset

    return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
