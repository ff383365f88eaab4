"""Checkpoints: what a killed training needs to go on as if nothing had happened.

A file appears under its name when it is whole. It is read with ``weights_only``: no code is in it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from karui.errors import Tampered, foreign

SCHEMA = "karui.training/1"


@dataclass(frozen=True)
class Checkpoints:
    """In ``folder``, for the training that ``identity`` tells; nothing is stored where folder is None.

    Another training has a file of its own there.
    """

    folder: Path | None
    identity: str

    def load(self) -> dict[str, Any] | None:
        """What was stored last; None for a fresh start. Raises Tampered when it cannot be read."""
        if self.folder is None or not (path := self.file(self.folder)).exists():
            return None
        with foreign(Tampered, f"{path} cannot be read", fix="remove it; the training then starts anew"):
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if (found["schema"], found["identity"]) != (SCHEMA, self.identity):
                raise Tampered(f"{path} is of another training", fix="remove it")
        return found

    def save(self, state: Mapping[str, Any]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f"{self.identity[:16]}.draft"
        with draft.open("wb") as file:
            torch.save({"schema": SCHEMA, "identity": self.identity, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self.file(self.folder))

    def file(self, folder: Path) -> Path:
        return folder / f"{self.identity[:16]}.pt"


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, also of those that a state dict leaves out."""
    return {name: tensor.detach().clone() for name, tensor in named(model).items()}


@torch.no_grad()
def put_back(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    for name, tensor in named(model).items():
        tensor.copy_(kept[name])


def named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
