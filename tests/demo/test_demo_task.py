from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from karui import demo
from karui.data import read_split, three_splits


@pytest.fixture(scope="module")
def arrays():
    return demo.load_arrays()


@pytest.mark.parametrize("part, count", [("train", 4000), ("test", 2000)])
def test_arrays_are_balanced_everywhere(arrays, part, count):
    images, labels = getattr(arrays, f"{part}_images"), getattr(arrays, f"{part}_labels")
    assert images.shape == (count, 1, 28, 28)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert labels.dtype == np.int64
    assert (labels == np.arange(count) % 10).all()


def test_stored_file_needs_no_pickle():
    with np.load(demo.FOLDER / "fashion.npz", allow_pickle=False) as stored:
        assert {name: stored[name].dtype.name for name in stored.files} == dict.fromkeys(
            ["train_images", "train_labels", "test_images", "test_labels"], "uint8"
        )


def test_files_are_small_and_licensed():
    assert (demo.FOLDER / "fashion.npz").stat().st_size < 4 * 2**20
    assert (demo.FOLDER / "fashion_resnet.safetensors").stat().st_size < 2**20
    notice = (demo.FOLDER / "FASHION_MNIST_LICENSE.txt").read_text(encoding="utf-8")
    assert "Copyright (c) 2017 Zalando SE" in notice


def test_checkpoint_is_accurate(arrays):
    model = demo.model()
    assert not model.training
    with torch.inference_mode():
        batches = torch.from_numpy(arrays.test_images).split(250)
        answers = torch.cat([model(batch).argmax(1) for batch in batches])
    assert (answers.numpy() == arrays.test_labels).mean() >= 0.90


def test_task_gives_three_disjoint_splits():
    task = demo.task()
    splits = three_splits(
        read_split(task.calibrate, ["images"], "calibration"),
        read_split(task.select, ["images"], "selection"),
        read_split(task.confirm, ["images"], "confirmation"),
        seed=0,
    )
    sizes = [len(splits.calibrate), len(splits.select), len(splits.confirm)]
    assert sizes == [300, 1000, 1000]
    assert splits.notes == ()
    assert len(task.classes) == 10
    assert task.model()(task.inputs).shape == (8, 10)


def test_import_is_cheap():
    code = "import sys, karui.demo; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
