"""The cut in the user's own module: smaller tensors in the same places, and attributes that fit them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from karui.graph.cut.edits import Edit, literal_changes
from karui.graph.cut.shapes import Gone, kept
from karui.graph.trace import ROOT, module_of
from karui.graph.units import Units
from karui.graph.units.labels import Labels


def cut_module(model: nn.Module, units: Units, gone: Gone, changes: Mapping[str, Edit]) -> nn.Module:
    """A copy of ``model`` with its tensors cut; what its code then computes has to be verified."""
    twin = copy.deepcopy(model)
    cut_tensors(twin, units, gone)
    for path, module in twin.named_modules():
        update_attributes(module, groups_after(path, units, changes))
    nodes = {node.name: node for node in units.trace.graph.graph.nodes}
    set_literals(twin, {nodes[name]: edit for name, edit in changes.items()})
    return twin


def cut_tensors(twin: nn.Module, units: Units, gone: Gone) -> None:
    """Every stored tensor that loses something; tied ones stay tied."""
    done: dict[int, Tensor] = {}
    for path, tensor, labels in labelled(twin, units):
        left = kept(labels, gone)
        if left.changed:
            replace(twin, path, done.setdefault(id(tensor), smaller(tensor, left.take(tensor.detach()))))


def labelled(module: nn.Module, units: Units) -> list[tuple[str, Tensor, Labels]]:
    """Stored tensors with their labels, under every name: the graph knows a tied one by a single name."""
    found = stored(module)
    known = {id(tensor): units.weights[ROOT + path] for path, tensor in found if ROOT + path in units.weights}
    return [(path, tensor, known[id(tensor)]) for path, tensor in found if id(tensor) in known]


def stored(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers under every name they have."""
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def smaller(old: Tensor, new: Tensor) -> Tensor:
    new = new.clone(memory_format=torch.preserve_format)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def replace(model: nn.Module, path: str, new: Tensor | nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, new)


def groups_after(path: str, units: Units, changes: Mapping[str, Edit]) -> int | None:
    """The number of groups that this module's convolution or group norm has afterwards, if it changes."""
    for node in units.trace.graph.graph.nodes:
        edit = changes.get(node.name)
        if edit is None or module_of(node) != path:
            continue
        if "conv" in str(node.target):
            return int(edit.kwargs.get("groups") or edit.args.get(6, 0)) or None
        if "group_norm" in str(node.target):
            return int(edit.args[1])
    return None


def update_attributes(module: nn.Module, groups: int | None) -> None:
    """Of the layers that PyTorch brings."""
    for kinds, update in UPDATES:
        if isinstance(module, kinds):
            update(module, groups)
            return


def update_conv(module: Any, groups: int | None) -> None:
    module.groups = groups or module.groups
    rows, columns = module.weight.shape[:2]
    sizes = (rows, columns * module.groups) if module.transposed else (columns * module.groups, rows)
    module.in_channels, module.out_channels = sizes


def update_linear(module: Any, groups: int | None) -> None:
    module.out_features, module.in_features = module.weight.shape


def update_norm(module: Any, groups: int | None) -> None:
    known = module.weight if module.weight is not None else module.running_mean
    module.num_features = len(known) if known is not None else module.num_features


def update_group_norm(module: Any, groups: int | None) -> None:
    module.num_groups = groups or module.num_groups
    module.num_channels = len(module.weight) if module.weight is not None else module.num_channels


def update_axis_norm(module: Any, groups: int | None) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def update_embedding(module: Any, groups: int | None) -> None:
    module.embedding_dim = module.weight.shape[1]


def update_prelu(module: Any, groups: int | None) -> None:
    module.num_parameters = len(module.weight)


def update_recurrent(module: Any, groups: int | None) -> None:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    module.hidden_size = module.weight_hh_l0.shape[0] // gates
    module.input_size = module.weight_ih_l0.shape[1]
    module.proj_size = module.weight_hh_l0.shape[1] if module.proj_size else 0


UPDATES: tuple[tuple[Any, Callable[[Any, int | None], None]], ...] = (
    (nn.modules.conv._ConvNd, update_conv),
    (nn.Linear, update_linear),
    (nn.modules.batchnorm._NormBase, update_norm),
    (nn.GroupNorm, update_group_norm),
    ((nn.LayerNorm, nn.RMSNorm), update_axis_norm),
    (nn.Embedding, update_embedding),
    (nn.RNNBase, update_recurrent),
    (nn.PReLU, update_prelu),
)


def set_literals(twin: nn.Module, changes: Mapping[Node, Edit]) -> None:
    """Sizes that the user's module keeps as attributes: those that are numbers in its own operations.

    A guess that is checked like everything else: only where old and new agree in all of the module's
    operations.
    """
    wanted: dict[str, dict[int, set[int]]] = {}
    for node, edit in changes.items():
        for old, new in literal_changes(node, edit):
            wanted.setdefault(module_of(node), {}).setdefault(old, set()).add(new)
    for path, pairs in wanted.items():
        module = twin.get_submodule(path)
        if type(module).__module__.startswith("torch."):
            continue
        for name, value in vars(module).items():
            if name.startswith("_") or isinstance(value, bool) or not isinstance(value, (int, tuple, list)):
                continue
            setattr(module, name, with_literals(value, pairs))


def with_literals(value: Any, pairs: Mapping[int, set[int]]) -> Any:
    if isinstance(value, (tuple, list)):
        return (
            type(value)([with_literals(part, pairs) for part in value])
            if type(value) in (tuple, list)
            else value
        )
    new = pairs.get(value, set()) if isinstance(value, int) and not isinstance(value, bool) else set()
    return next(iter(new)) if len(new) == 1 else value
