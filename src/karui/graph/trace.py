"""A model as one flat graph of ATen operations, with every intermediate result within reach.

``torch.export`` (non-strict) sees what runs, whatever the Python code looks like: arguments and sizes are
exact, frozen and shared parameters are as visible as others, a branch on data is refused instead of
guessed.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from karui.artifact import Signature
from karui.graph.call import tensors_of
from karui.graph.capture import Flat, exported, repeat
from karui.graph.program import without_guards

if TYPE_CHECKING:
    from karui.data import Arrays

ROOT = "model."  # paths in the graph start with it: the exported module holds the user's as ``model``
ROWS = 2  # samples that a graph is run on to learn its shapes


@dataclass(frozen=True)
class Trace:
    """``graph`` takes the flat inputs; its parameters are those of the model, by path after ``ROOT``.

    example: flat inputs of ``ROWS`` samples, or as many as a graph without a dynamic batch takes.
    """

    graph: GraphModule
    signature: Signature
    example: tuple[Tensor, ...]
    dynamic: bool

    def inputs(self, arrays: Arrays, rows: int) -> tuple[Tensor, ...]:
        """The first ``rows`` samples (repeated, if there are fewer) as flat inputs."""
        return tuple(tensors_of(repeat(arrays, rows if self.dynamic else len(self.example[0]))).values())


def trace(model: nn.Module, signature: Signature, example: Arrays) -> Trace:
    """The graph of ``model`` (in eval mode), with a dynamic batch where it allows one.

    Raises BuildFailed where ``torch.export`` cannot see the whole program.
    """
    flat = Flat(model, signature).eval()
    program, dynamic = exported(flat, example, signature.batch)
    graph = without_guards(program.module())
    graph = GraphModule(graph, graph.graph)
    inline_regions(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    rows = ROWS if dynamic else signature.batch
    return Trace(graph, signature, tuple(tensors_of(repeat(example, rows)).values()), dynamic)


def inline_regions(module: GraphModule) -> None:
    """Put the operations of ``no_grad`` and similar regions into the graph around them."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        position, region = region_of(module, node)
        if region is None:
            continue
        inline_regions(region)
        with module.graph.inserting_before(node):
            results = copied(module, region, node.args[position + 1 :])
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(results[user.args[1]])
                module.graph.erase_node(user)
        if not node.users:
            module.graph.erase_node(node)


def region_of(module: GraphModule, node: Node) -> tuple[int, GraphModule | None]:
    """The one submodule that a higher-order operation runs, and at which argument it stands."""
    found = [
        (i, getattr(module, arg.target))
        for i, arg in enumerate(node.args)
        if isinstance(arg, Node)
        and arg.op == "get_attr"
        and isinstance(arg.target, str)
        and "." not in arg.target
    ]
    regions = [(i, value) for i, value in found if isinstance(value, GraphModule)]
    users_are_parts = all(user.target is operator.getitem for user in node.users)
    return regions[0] if len(regions) == 1 and users_are_parts else (0, None)


def copied(module: GraphModule, region: GraphModule, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy a region's nodes to the insertion point of ``module``; gives what it returned."""
    twins: dict[Node, Any] = dict(zip((n for n in region.graph.nodes if n.op == "placeholder"), args))
    for node in region.graph.nodes:
        if node.op == "output":
            results = node.args[0]
            found = torch.fx.map_arg(results, lambda n: twins[n])
            return tuple(found) if isinstance(found, (tuple, list)) else (found,)
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            name = f"region_{id(region)}_{node.target}".replace(".", "_")
            setattr(module, name, operator.attrgetter(node.target)(region))
            twins[node] = module.graph.get_attr(name)
            continue
        twins[node] = module.graph.node_copy(node, lambda n: twins[n])
    raise AssertionError("a graph ends with its output")


def twin_of(graph: GraphModule) -> GraphModule:
    """A deep copy; torch copies a deprecated class of its own on the way and warns of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(graph)


class Walk(Interpreter):
    """Runs a graph and gives every node with its arguments and its result, in order."""

    def steps(self, *inputs: Tensor) -> Iterator[tuple[Node, tuple[Any, ...], Mapping[str, Any], Any]]:
        self.args_iter = iter(inputs)
        self.env = {}
        with torch.no_grad():
            for node in self.graph.nodes:
                args, kwargs = self.fetch_args_kwargs_from_env(node)
                self.env[node] = self.run_node(node)
                yield node, args, kwargs, self.env[node]
                for done in self.user_to_last_uses.get(node, []):
                    del self.env[done]


Step = tuple[Node, tuple[Any, ...], Mapping[str, Any], Any]


def in_step(graph: GraphModule, data: Sequence[tuple[Tensor, ...]]) -> Iterator[tuple[Step, ...]]:
    """Runs a graph on several batches at once, each node on all of them before the next.

    What is changed in place, results too, is what later nodes read. Call it without gradients.
    """
    return zip(*(Walk(graph).steps(*inputs) for inputs in data))


def held_bytes(graph: GraphModule, inputs: tuple[Tensor, ...]) -> int:
    """Of computed values that are held at a time, at most, when the graph runs on ``inputs``."""
    walk, most = Walk(graph), 0
    for _ in walk.steps(*inputs):
        held = [value for node, value in walk.env.items() if node.op != "get_attr"]
        most = max(most, sum(one.nbytes for one in held if isinstance(one, Tensor)))
    return most


def module_of(node: Node) -> str:
    """The path of the innermost module whose forward computes ``node``; empty for the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return "" if path == ROOT[:-1] else path.removeprefix(ROOT)


def line_of(node: Node) -> str:
    """``file.py:12`` of the user's line that computes ``node``, where it is known."""
    lines = [
        line for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip().startswith("File")
    ]
    if not lines:
        return ""
    name, _, number = lines[-1].strip().removeprefix("File ").partition(", line ")
    return f"{Path(name.strip(chr(34))).name}:{number.partition(',')[0]}"


def packet(node: Node) -> Any:
    """The operation without its overload: ``conv2d`` for ``conv2d.padding`` too."""
    return getattr(node.target, "overloadpacket", node.target)


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of an operation as the graph has it, wherever it was given."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def op_name(node: Node) -> str:
    return str(getattr(packet(node), "__name__", node.target))
