"""Looking at a model before anything is done with it: its layers, its cost, its faults."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from karui.errors import UsageError, foreign

LAYER_OF = {
    "linear": "Linear",
    "addmm": "Linear",
    "conv1d": "Conv1d",
    "conv2d": "Conv2d",
    "conv3d": "Conv3d",
    "convolution": "Conv2d",
    "_convolution": "Conv2d",
    "lstm": "LSTM",
    "gru": "GRU",
    "rnn_tanh": "RNN",
    "rnn_relu": "RNN",
}


@dataclass(frozen=True)
class ModelFacts:
    """Counts of one model; ``macs`` are multiply-accumulates for one sample."""

    layers: Mapping[str, int]
    parameters: int
    macs: int
    sparsity: float
    size_bytes: int


def private_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU; the user's object is never touched again.

    Masks of ``torch.nn.utils.prune`` are made permanent in it: zeros in plain parameters.
    """
    fix = "give a function that makes the model"
    with foreign(UsageError, "the model cannot be copied", fix=fix), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memo = {id(weight): weight.detach().clone() for _, _, weight in masked(model)}  # they have a history
        twin = copy.deepcopy(model, memo)
        for part, name, _ in masked(twin):
            prune.remove(part, name)  # type: ignore[no-untyped-call]
            getattr(part, name).data.add_(0.0)  # a masked negative weight is -0.0
    return twin.cpu().eval()


def masked(model: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Modules, names and values of the weights that torch.nn.utils.prune computes before each call."""
    return [
        (part, hook._tensor_name, getattr(part, hook._tensor_name))
        for part in model.modules()
        for hook in part._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Path of each module -> whether it is in training mode."""
    return {name: part.training for name, part in model.named_modules()}


def with_modes(made: nn.Module, modes: Mapping[str, bool]) -> nn.Module:
    """``made``, its modules in the given modes; new ones in that of the whole."""
    for name, part in made.named_modules():
        part.training = modes.get(name, modes[""])
    return made


def check_model(model: nn.Module) -> None:
    """Refuse weights that cannot be measured honestly: NaN, infinite, or not float32."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(
                f"the model is not in float32: {name} is {kind}",
                why="every ratio and drop is taken against float32",
                fix="give model.float(), and inputs in float32",
            )
        if not torch.isfinite(tensor).all():
            raise UsageError(
                f"the model's {name} holds NaN or infinite values",
                fix="load a good checkpoint; nothing was changed",
            )


def look(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ModelFacts:
    """Count layers, parameters (shared ones once) and the cost of one sample.

    ``args`` and ``kwargs`` hold exactly one sample.
    """
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters)
    return ModelFacts(
        layers=layers_of(model),
        parameters=count,
        macs=macs(model, args, kwargs),
        sparsity=sparsity(model),
        size_bytes=size_bytes(model),
    )


def layers_of(model: nn.Module) -> Counter[str]:
    """How often each module class occurs; a captured graph tells it by its operations."""
    found = Counter(type(module).__name__ for module in model.modules())
    graphs = [module.graph for module in model.modules() if isinstance(module, GraphModule)]
    targets = [getattr(node.target, "overloadpacket", None) for graph in graphs for node in graph.nodes]
    found.update(
        LAYER_OF[name] for target in targets if (name := getattr(target, "__name__", "")) in LAYER_OF
    )
    return found


def macs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return int(counter.get_total_flops() // 2)


def sparsity(model: nn.Module) -> float:
    """Share of exact zeros among all parameters, 0..1; shared parameters count once."""
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    zeros = sum(int((p == 0).sum()) for p in parameters)
    return zeros / total if total else 0.0


def size_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; shared storage counts once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in [*model.parameters(), *model.buffers()]
    }
    return sum(storages.values())


def state_digest(model: nn.Module) -> str:
    """SHA-256 over names and bytes of the whole state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
