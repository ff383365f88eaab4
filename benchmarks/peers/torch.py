"""PyTorch alone: the trained model as it is (the baseline of every ratio), and torch.compile."""

from __future__ import annotations

from benchmarks.peers._given import Given
from benchmarks.peers._user import save_program


def eager(given: Given) -> str:
    save_program(given.model, tuple(tensor[:1].clone() for tensor in given.example), given.out / "model.pt2")
    return "fp32@torch_eager"


def compiled(given: Given) -> str:
    save_program(given.model, tuple(tensor[:1].clone() for tensor in given.example), given.out / "model.pt2")
    return "fp32@torch_compile"
