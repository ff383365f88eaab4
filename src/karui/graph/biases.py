"""Biases for layers that have none: zeros, which change nothing until something is put in."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def give_biases(model: nn.Module) -> list[str]:
    """Give every convolution and linear layer a bias; tells the paths of the modules that had none."""
    given = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, _ConvNd)) and module.bias is None:
            axis = 1 if isinstance(module, _ConvTransposeNd) else 0
            groups = module.groups if isinstance(module, _ConvTransposeNd) else 1
            module.bias = nn.Parameter(torch.zeros(module.weight.shape[axis] * groups), requires_grad=False)
            module.bias.requires_grad_(module.weight.requires_grad)
            given.append(path)
    return given


def take_back(model: nn.Module, given: Collection[str]) -> None:
    """Remove those of the given biases into which nothing was put."""
    for path in given:
        module: Any = model.get_submodule(path)
        if not bool(module.bias.any()):
            module.bias = None
