"""Make the files inside ``karui.demo`` from the full data and the trained ResNet.

Run ``python -m benchmarks.networks.make_demo`` after ``python -m benchmarks.networks.train``. The
same inputs give the same bytes.
"""

from __future__ import annotations

import shutil

import numpy as np
from benchmarks.data import load
from benchmarks.networks.train import CHECKPOINTS

from karui import demo

TRAIN_PER_CLASS, TEST_PER_CLASS = 400, 200


def main() -> None:
    (train_images, train_labels), (test_images, test_labels) = load("fashion-mnist")
    train, test = balanced(train_labels, TRAIN_PER_CLASS), balanced(test_labels, TEST_PER_CLASS)
    np.savez_compressed(
        demo.FOLDER / "fashion.npz",
        train_images=train_images[train],
        train_labels=train_labels[train],
        test_images=test_images[test],
        test_labels=test_labels[test],
    )
    shutil.copyfile(CHECKPOINTS / "fashion.safetensors", demo.FOLDER / "fashion_resnet.safetensors")
    for name in ("fashion.npz", "fashion_resnet.safetensors"):
        print(f"{name}: {(demo.FOLDER / name).stat().st_size} bytes")


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of the first ``count`` samples of each class, the classes taking turns."""
    return np.stack([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)], 1).ravel()


if __name__ == "__main__":
    main()
