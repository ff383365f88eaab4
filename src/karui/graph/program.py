"""Exported programs on disk, and running one as a plain function of flat inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn
from torch.fx import GraphModule
from torch.fx.graph import CodeGen
from torch.utils._pytree import tree_map

from karui.artifact import Signature
from karui.errors import UsageError, foreign
from karui.graph.call import tensors_of
from karui.graph.capture import EXAMPLE_ROWS, LARGEST_BATCH, repeat

if TYPE_CHECKING:
    from karui.data import Array, Arrays

TOLD = ("stack_trace", "from_node", "source_fn_stack")  # metadata with paths of this machine; it fills files


def open_exported(path: Path) -> torch.export.ExportedProgram:
    """Read a ``.pt2`` file; raises UsageError when it is not one or is cut short."""
    with foreign(
        UsageError,
        f"{path.name} is not an exported program that this torch can read",
        fix="save it again with torch.export.save",
    ):
        return torch.export.load(path)


def save_exported(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write ``program``, which is changed for it: without samples of the data and this machine's paths."""
    program.example_inputs = None
    for node in program.graph.nodes:
        for key in TOLD:
            node.meta.pop(key, None)
    torch.export.save(program, path)


def open_program(path: Path) -> GraphModule:
    """The program as a module that takes flat inputs and gives the flat tuple of outputs."""
    return bare(open_exported(path).module())


def bare(module: GraphModule) -> GraphModule:
    """Take off input guards and nested-input handling, which cost tens of microseconds a call."""
    without_guards(module).graph.set_codegen(CodeGen())
    module.recompile()
    return module


def without_guards(module: GraphModule) -> GraphModule:
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
    module._forward_pre_hooks.clear()
    module.recompile()
    return module


def delete_unread(graph: GraphModule) -> None:
    """Take out stored tensors that nothing refers to any more: float weights double a file."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)


def export(
    graph: GraphModule, signature: Signature, example: Arrays, most: int = LARGEST_BATCH
) -> torch.export.ExportedProgram:
    """A changed graph as a program again, with the batch it had; a dynamic one of at most ``most`` rows."""
    rows = EXAMPLE_ROWS if signature.dynamic_batch else signature.batch
    tensors = tuple(tensors_of(repeat(example, rows)).values())
    batch = torch.export.Dim("batch", min=1, max=max(most, EXAMPLE_ROWS))
    shapes = tuple({0: batch} for _ in tensors) if signature.dynamic_batch else None
    return torch.export.export(bare(graph), tensors, dynamic_shapes=shapes, strict=False)


def predictor(module: Callable[..., Any], signature: Signature) -> Callable[[Arrays], list[Array]]:
    """``module`` as a function of numpy arrays by name; memory is shared, not copied, going in."""
    names = [port.name for port in signature.inputs]

    @torch.inference_mode()
    def predict(arrays: Arrays) -> list[Array]:
        outputs = module(*[torch.from_numpy(arrays[name]) for name in names])
        return [output.numpy() for output in flat(outputs)]

    return predict


def flat(outputs: Any) -> Sequence[torch.Tensor]:
    return outputs if isinstance(outputs, (tuple, list)) else (outputs,)


def as_module(path: Path) -> nn.Module:
    """A ``.pt2`` file as an ordinary module, to be captured and measured like any other."""
    program = open_exported(path)
    module = without_guards(program.module())
    plain = GraphModule(module, module.graph)
    rows = fixed_rows(program)
    return plain if rows is None else Chunked(plain, rows)


def fixed_rows(program: torch.export.ExportedProgram) -> int | None:
    """How many rows a program takes that was exported without a dynamic batch; None for one with it."""
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    sizes = {value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.ndim}
    return sizes.pop() if len(sizes) == 1 and all(isinstance(size, int) for size in sizes) else None


@final
class Chunked(nn.Module):
    """``module``, which takes exactly ``rows`` rows, for any number of them."""

    def __init__(self, module: nn.Module, rows: int) -> None:
        nn.Module.__init__(self)
        self.module, self.rows = module, rows

    def forward(self, *tensors: torch.Tensor) -> Any:
        count, rows = len(tensors[0]), self.rows
        if count == rows:  # timed as it is
            return self.module(*tensors)
        index = torch.arange(-(-count // rows) * rows).clamp(max=count - 1)
        filled = [tensor[index] for tensor in tensors]
        parts = [self.module(*[tensor[i : i + rows] for tensor in filled]) for i in range(0, count, rows)]
        return tree_map(lambda *pieces: torch.cat(pieces)[:count], *parts)


def from_torchscript(module: torch.jit.ScriptModule, tensors: tuple[torch.Tensor, ...]) -> GraphModule:
    """A TorchScript module as an ordinary one. Raises UsageError where it cannot be translated."""
    with (
        foreign(
            UsageError,
            "this TorchScript module cannot be translated",
            fix="name the script that builds the network: file.py:name",
        ),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        from torch._export.converter import TS2EPConverter

        program = TS2EPConverter(module, tensors).convert()
    plain = without_guards(program.module())
    return GraphModule(plain, plain.graph)
