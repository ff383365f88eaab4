"""The MNIST files: reading them from a folder, downloading them when asked to.

Stands by itself, so that the folder ``examples/mnist`` can be copied and changed.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MD5 = {  # of the compressed files, as published
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
LARGEST_BYTES = 16 * 2**20
DOWNLOAD_LIMIT_S = 60


class MnistError(Exception):
    """The files are not there, damaged, or could not be downloaded."""


def read_set(folder: Path, part: str) -> TensorDataset:
    """``part`` "train" or "t10k": images float32 (n, 1, 28, 28) in [0, 1], labels int64 (n,)."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte")
    pixels = torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)
    return TensorDataset(pixels, torch.from_numpy(labels.astype(np.int64)))


def read_idx(path: Path) -> np.ndarray:
    """The bytes of an idx file, plain or ``.gz``, in the shape that its header tells."""
    try:
        plain = path.is_file()
        blob = path.read_bytes() if plain else gzip.decompress(Path(f"{path}.gz").read_bytes())
    except (OSError, EOFError) as problem:
        raise MnistError(f"{path} (or .gz) cannot be read: {problem}") from problem
    if len(blob) < 4 or blob[:3] != b"\0\0\x08" or len(blob) < 4 + 4 * blob[3]:
        raise MnistError(f"{path} is not an idx file of bytes")
    shape = np.frombuffer(blob, ">u4", blob[3], 4).astype(int)
    values = np.frombuffer(blob, np.uint8, offset=4 + 4 * blob[3])
    if values.size != shape.prod():
        raise MnistError(f"{path} is cut short: {values.size} values, its header says {shape}")
    return values.reshape(shape)


def download(folder: Path) -> None:
    """Put the four files into ``folder``; a file with the wrong checksum is never kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, md5 in MD5.items():
        if not (folder / name).is_file():
            unfinished = folder / f"{name}.part"
            unfinished.write_bytes(fetch(name, md5))
            os.replace(unfinished, folder / name)


def fetch(name: str, md5: str) -> bytes:
    problems = []
    for mirror in MIRRORS:
        try:
            blob = read_url(mirror + name)
        except (OSError, http.client.HTTPException) as problem:
            problems.append(f"{mirror}: {problem}")
            continue
        if hashlib.md5(blob, usedforsecurity=False).hexdigest() == md5:
            return blob
        problems.append(f"{mirror}: the file has the wrong checksum")
    raise MnistError(f"{name} could not be downloaded: {'; '.join(problems)}")


def read_url(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=DOWNLOAD_LIMIT_S) as answer:
        blob: bytes = answer.read(LARGEST_BYTES)
    return blob
