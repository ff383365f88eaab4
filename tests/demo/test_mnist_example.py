from __future__ import annotations

import mnist
import numpy as np
import pytest
import task
import train

from karui.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    """Sixty random images in the four files."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 40), ("t10k", 20)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", rng.integers(0, 10, n))
    return tmp_path


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_trains_saves_and_reloads(folder, monkeypatch, capsys, optimizer):
    saved = folder / "net.safetensors"
    words = ["--data", str(folder), "--epochs", "1", "--optimizer", optimizer, "--out", str(saved)]
    assert train.main(words) == 0
    assert "loaded back" in capsys.readouterr().out

    monkeypatch.setattr(task, "CHECKPOINT", saved)
    monkeypatch.setenv("KARUI_MNIST", str(folder))
    given = task.task()
    assert given.model(given.inputs).shape == (8, 10)


def test_without_data_says_what_to_do(tmp_path, capsys):
    assert train.main(["--data", str(tmp_path)]) == 1
    what, why, fix = capsys.readouterr().err.splitlines()
    assert "no MNIST" in what
    assert "cannot be read" in why
    assert "--download" in fix


def test_untrained_task_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "CHECKPOINT", tmp_path / "none")
    with pytest.raises(UsageError, match="not trained yet"):
        task.task()


def test_refused_download_keeps_nothing(tmp_path, monkeypatch):
    def refuse(url):
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(mnist, "read_url", refuse)
    with pytest.raises(mnist.MnistError, match="could not be downloaded.*refused"):
        mnist.download(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_checksum_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "read_url", lambda url: b"something else")
    with pytest.raises(mnist.MnistError, match="wrong checksum"):
        mnist.download(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_download_fetches_only_what_is_missing(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(mnist, "fetch", lambda name, md5: asked.append(name) or b"")
    first, *others = mnist.MD5
    (tmp_path / first).write_bytes(b"")
    mnist.download(tmp_path)
    assert asked == others
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(mnist.MD5)
