"""Calling a user's model with arrays: which arguments it takes and what it gives back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from karui.artifact import Port, Signature
from karui.blame import users_code
from karui.data import as_arrays
from karui.errors import UsageError
from karui.structure import flatten, names

if TYPE_CHECKING:
    from karui.data import Array, Arrays

    Run = Callable[[nn.Module, str, Arrays], tuple[list[Array], Any]]


def style_of(model: nn.Module, example: Any) -> tuple[str, tuple[str, ...]]:
    """How ``model`` takes ``example``: the style of ``Signature`` and the inputs' names."""
    parameters = parameters_of(model)
    if isinstance(example, Mapping):
        keys = tuple(str(key) for key in example)
        return ("kwargs" if set(keys) <= set(parameters) else "dict"), keys
    count = len(example) if isinstance(example, (tuple, list)) else 1
    named = tuple(parameters[:count]) if "args" not in parameters else ()
    return "args", named if len(named) == count else tuple(f"input_{i}" for i in range(count))


def parameters_of(model: nn.Module) -> list[str]:
    """Names of the arguments that ``model.forward`` takes."""
    found = inspect.signature(model.forward).parameters.values()
    return [p.name for p in found if p.kind is not p.VAR_KEYWORD]


def arguments(style: str, tensors: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for a call in the given style."""
    if style == "args":
        return tuple(tensors.values()), {}
    return ((), dict(tensors)) if style == "kwargs" else ((dict(tensors),), {})


def tensors_of(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


@torch.no_grad()
def run(model: nn.Module, style: str, arrays: Arrays) -> tuple[list[Array], Any]:
    """Flat outputs of the user's own model on ``arrays``, and their tree; raises as ``called``."""
    leaves, tree = called(model, style, tensors_of(arrays))
    return [leaf.detach().cpu().numpy() for leaf in leaves], tree


def called(
    model: nn.Module, style: str, tensors: Mapping[str, torch.Tensor]
) -> tuple[list[torch.Tensor], Any]:
    """Flat outputs as tensors, and their tree.

    Raises UsageError when the model does not take these inputs or does not give tensors.
    """
    args, kwargs = arguments(style, tensors)
    with users_code(
        UsageError, "the model does not run on the example inputs", fix="check their shapes, dtypes and order"
    ):
        outputs = model(*args, **kwargs)
    leaves, tree = flatten(outputs)
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise UsageError(
            "the model's outputs are not all tensors",
            fix="return a tensor, or a tuple, list or dict of tensors",
        )
    return leaves, tree


def run_all(model: nn.Module, style: str, arrays: Arrays, batch: int = 256) -> list[Array]:
    """Flat outputs on all rows of ``arrays``, computed in pieces of ``batch``."""
    import numpy as np

    rows = len(next(iter(arrays.values())))
    parts = [
        run(model, style, {k: v[i : i + batch] for k, v in arrays.items()})[0] for i in range(0, rows, batch)
    ]
    whole = [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
    if not all(np.isfinite(output).all() for output in whole if output.dtype.kind == "f"):
        raise UsageError(
            "the original model gives NaN or infinite outputs",
            fix="check its weights and the scale of its inputs",
        )
    return whole


def signature_of(model: nn.Module, example: Any, batch: int, run: Run = run) -> tuple[Signature, Arrays]:
    """The signature, and ``example`` as arrays by name; outputs of ``run`` tell shapes and types."""
    style, keys = style_of(model, example)
    arrays = as_arrays(example, keys)
    for name, array in arrays.items():
        if array.dtype == "float64":
            raise UsageError(
                f"the input {name} is float64",
                why="every ratio is taken against float32",
                fix="give inputs in float32",
            )
    rows = len(next(iter(arrays.values())))
    outputs, tree = run(model, style, arrays)
    inputs = tuple(Port(name, str(a.dtype), (None, *a.shape[1:])) for name, a in arrays.items())
    return Signature(style, inputs, ports(outputs, tree, rows), tree, batch=batch), arrays


def ports(outputs: list[Array], tree: Any, rows: int) -> tuple[Port, ...]:
    for output in outputs:
        if output.ndim == 0 or len(output) != rows:
            raise UsageError(
                "an output has no batch axis",
                why=f"{rows} samples went in, an output of shape {output.shape} came out",
                fix="return one row per sample; aggregate outside of the model",
            )
    return tuple(
        Port(name, str(output.dtype), (None, *output.shape[1:]))
        for name, output in zip(names(tree), outputs, strict=True)
    )
