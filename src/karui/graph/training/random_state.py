"""The random numbers of torch, numpy and Python: kept, seeded, stored and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = dict[str, Any]  # tensors, numbers and lists alone


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers that ``seed`` tells; outside everything is as it was."""
    before = random_state()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        restore(before)


def random_state() -> State:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys, np.int64)),
            int(position),
            has_gauss,
            float(gauss),
        ],
        "python": [version, list(words), following],
    }


def restore(state: State) -> None:
    kind, keys, position, has_gauss, gauss = state["numpy"]
    version, words, following = state["python"]
    torch.set_rng_state(state["torch"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    random.setstate((version, tuple(words), following))


def words_of(keys: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(keys, np.int64))
