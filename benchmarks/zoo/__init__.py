"""A zoo of small models, each with one thing in it that makes removing channels, heads or hidden units hard.

``python -m benchmarks.zoo`` lists the cases and checks that each runs and exports. The themes follow the
96 cases of the pruning research, and more: a tool that is right here is right about how tensors move.
"""

from __future__ import annotations

import torch
from benchmarks.zoo import (
    attention,
    convolutional,
    dense,
    detection,
    gated,
    grouped,
    libraries,
    library_attention,
    norms,
    opaque,
    pyramids,
    recurrent,
    regions,
    reshaping,
    residual,
    sequences,
    sharing,
    signatures,
    slicing,
    transformers,
)
from benchmarks.zoo.case import Case
from torch import nn

THEMES = (
    convolutional,
    residual,
    reshaping,
    slicing,
    grouped,
    gated,
    norms,
    attention,
    library_attention,
    transformers,
    recurrent,
    sequences,
    dense,
    detection,
    pyramids,
    sharing,
    regions,
    signatures,
    opaque,
    libraries,
)
CASES: tuple[Case, ...] = tuple(case for theme in THEMES for case in theme.CASES)

WITH_STATISTICS = nn.modules.batchnorm._NormBase
NORMS = (WITH_STATISTICS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def built(case: Case, seed: int) -> nn.Module:
    """The network with values of ``seed`` and those the case is about, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for buffers that a constructor draws, as spectral_norm's
        model = randomised(case.network(), seed)
    if case.prepare:
        case.prepare(model)
    return model.eval()


@torch.no_grad()
def randomised(model: nn.Module, seed: int) -> nn.Module:
    """``model`` itself, its parameters and running statistics drawn anew: no error hides behind a 0 or 1.

    Tied parameters stay tied. Other buffers are constants that the network's code relies on, and stay.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in drawn:
                parameter.copy_(_drawn(module, name, parameter, generator))
                drawn.add(id(parameter))
        if isinstance(module, WITH_STATISTICS) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def _drawn(module: nn.Module, name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(like.shape, generator=generator)
    if "bias" in name:
        return 0.3 * normal
    if isinstance(module, NORMS) or like.dim() < 2:  # of one axis: norms and scales written by hand
        return 0.5 + torch.rand(like.shape, generator=generator)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or _is_embedding(module, like):
        return normal
    return 1.2 * normal / _fan_in(module, like) ** 0.5


def _is_embedding(module: nn.Module, parameter: torch.Tensor) -> bool:
    """Is it a position embedding or a class token, (1, positions, width), in a module of the user's own?"""
    return parameter.shape[0] == 1 and not type(module).__module__.startswith("torch.")


def _fan_in(module: nn.Module, weight: torch.Tensor) -> float:
    if isinstance(module, TRANSPOSED):
        return weight[:, 0].numel() / module.groups
    return weight[0].numel()
