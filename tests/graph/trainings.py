"""A training that runs as a script, to be killed or to be run by several processes.

    python trainings.py OUT.pt [folder=...] [devices=2] [norm=0] [kill=120] [precision=...]

Data come from an iterator that shuffles and augments with the global random numbers, as users' loaders do.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from nets import images, labels, material, net_of
from torch.utils.data import DataLoader, Dataset

from karui.graph.training import learn
from karui.graph.training.loop import Progress, Ways
from karui.graph.training.losses import Aim
from karui.graph.training.options import Options


class Noisy(Dataset):
    """Every sample is drawn anew, by all three random generators."""

    def __len__(self) -> int:
        return 56

    def __getitem__(self, row: int):
        noise = torch.randn(1, 6, 6) + np.random.standard_normal() + random.random()
        return images()[row] + 0.1 * noise, labels()[row]


def main(out: str, given: dict[str, str]) -> None:
    def watch(progress: Progress) -> None:
        if progress.step == int(given.get("kill", 0)):
            os.kill(os.getpid(), signal.SIGKILL)

    devices, norm = int(given.get("devices", 1)), given.get("norm", "1") == "1"
    options = Options(
        170,
        batch=16,
        lr=3e-3,
        devices=devices,
        precision=given.get("precision", "32"),
        patience=int(given["patience"]) if "patience" in given else None,
        schedule="one_cycle",
    )
    train = DataLoader(Noisy(), 16, shuffle=True) if norm else (images(), labels())
    if given.get("patience"):
        train = Noisy()
    folder = Path(given["folder"]) if "folder" in given else None
    net, teacher = net_of(seed=1, norm=norm), net_of(norm=norm)
    for one in (net, teacher):
        one[3 if norm else 2].p = 0.1 if norm else 0.0  # dropout differs from process to process
    told = learn(net, teacher, material(train), Aim(), options, Ways(folder=folder, watch=watch))
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save({"model": net.state_dict(), "told": told}, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], dict(word.split("=") for word in sys.argv[2:]))
