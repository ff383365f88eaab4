"""A captured program in FP16, with what would lose by it in FP32: found on calibration data, not guessed.

FP16 ends at 65504. A tensor whose values come near that, and what reads it, stays in FP32; so do operations
that sum or exponentiate (Micikevicius et al. 2018, arXiv:1710.03740), those without an FP16 kernel, and those
that are seen to give NaN or infinity where FP32 gives numbers.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from karui import host
from karui.artifact import Signature
from karui.errors import Unsupported, foreign
from karui.graph.call import tensors_of
from karui.graph.consumers import tensor_at
from karui.graph.fold import put
from karui.graph.onnx import batches, quiet
from karui.graph.program import bare, delete_unread, export, open_exported
from karui.graph.ranges.places import MOVES
from karui.graph.trace import ROOT, Walk, module_of, op_name, packet, twin_of

if TYPE_CHECKING:
    from karui.data import Arrays
    from karui.runtimes import Source

TOLD = "half.json"
LARGEST = 65504.0  # of FP16
NEAR = LARGEST / 2  # from here on a tensor stays in FP32: other data may reach farther
ROWS, MOST_ROWS = 16, 256  # held at once, and looked at
TRIES = 20  # operations that may be taken back to FP32 because they are seen to fail
NO_BF16 = "this CPU has no bfloat16 instructions: computed in float32, and rounded"
SHOWN = 3  # reasons, in the short form
SENSITIVE = (
    "softmax", "log_softmax", "logsumexp", "exp", "expm1", "pow", "log", "log1p", "sum", "cumsum", "prod",
    "mean", "var", "std", "norm", "linalg_vector_norm", "layer_norm", "group_norm", "instance_norm",
    "rms_norm", "rsqrt", "cosine_similarity", "normalize", "cdist",
)  # fmt: skip


@dataclass
class Plan:
    """largest: finite value of each float tensor. kept: what stays in FP32, and why. sensitive: what does so
    whatever its values are.
    """

    largest: dict[Node, float]
    kept: dict[Node, str] = field(default_factory=dict)
    sensitive: set[Node] = field(default_factory=set)


def halve(folder: Path, signature: Signature, data: Arrays) -> None:
    """Rewrite ``folder/model.pt2``, a program in FP32, in FP16, and tell beside it what stays in FP32.

    data: for the ranges. Inputs and answers keep their types. Raises Unsupported for weights beyond FP16.
    """
    path = folder / "model.pt2"
    with quiet(), torch.no_grad():
        graph = bare(open_exported(path).module())
        some = {name: rows[:MOST_ROWS] for name, rows in data.items()}
        inputs = [tuple(tensors_of(part).values()) for part in batches(some, signature, ROWS)]
        check_weights(graph)
        plan = Plan(extremes(graph, inputs))
        keep_near(graph, plan)
        made = working(graph, plan, inputs)
        torch.export.save(export(made, signature, data), path)  # compilers want its example inputs
    fallback = [{"node": named(node), "op": op_name(node), "reason": why} for node, why in plan.kept.items()]
    told = Told(fallback, dict(Counter(map(op_name, plan.sensitive))))
    (folder / TOLD).write_text(json.dumps(dataclasses.asdict(told)), encoding="utf-8")


def with_told(source: Source, executed: Mapping[str, Any]) -> dict[str, Any]:
    """``executed`` with what stays in FP32 of a program in FP16, and whether the CPU computes in bfloat16."""
    if executed["precision"] == "bf16" and not host.BFLOAT16 & source.flags:
        return dict(executed) | {"detail": f"{executed['detail']}; {NO_BF16}"}
    if not (source.folder / TOLD).is_file():
        return dict(executed)
    return Told(**json.loads((source.folder / TOLD).read_text(encoding="utf-8"))).added(executed)


@dataclass(frozen=True)
class Told:
    """What stays in FP32: operations with a reason, and how many of each sensitive kind."""

    fallback: Sequence[Mapping[str, str]]
    sensitive: Mapping[str, int]

    def added(self, executed: Mapping[str, Any]) -> dict[str, Any]:
        """To the facts of an artifact."""
        detail = "; ".join([executed["detail"], *self.words()])
        return dict(executed) | {"detail": detail, "fallback": list(self.fallback)}

    def words(self) -> list[str]:
        """Operations by reason, then the sensitive kinds."""
        reasons: dict[str, list[str]] = {}
        for one in self.fallback:
            reasons.setdefault(one["reason"], []).append(one["node"])
        layers = [f"in FP32: {', '.join(dict.fromkeys(names))} ({why})" for why, names in reasons.items()]
        kinds = ", ".join(f"{kind} x{many}" for kind, many in sorted(self.sensitive.items()))
        return layers[:SHOWN] + [f"sensitive, in FP32: {kinds}"] * bool(kinds)


def too_large(value: float) -> str:
    return f"values up to {value:.3g}, where FP16 ends at {LARGEST:.0f}"


def refuse_weight(name: str, value: float) -> None:
    """Raises Unsupported for a weight that FP16 does not hold."""
    raise Unsupported(
        f"the weights of {name} reach {value:.3g}, and FP16 ends at {LARGEST:.0f}",
        why="they would become infinite",
        fix="bf16, which holds them, or fp32",
    )


def check_weights(graph: GraphModule) -> None:
    for name, weight in graph.named_parameters():
        if weight.is_floating_point() and (largest := finite(weight)) > LARGEST:
            refuse_weight(name.removeprefix(ROOT), largest)


def finite(value: Tensor) -> float:
    """The largest magnitude; infinities, which FP16 has too, aside."""
    sizes = value.detach().abs()
    sizes = sizes[torch.isfinite(sizes)]
    return float(sizes.max()) if sizes.numel() else 0.0


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The float tensors of a result that may have parts."""
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)


def extremes(graph: GraphModule, inputs: Sequence[tuple[Tensor, ...]]) -> dict[Node, float]:
    found: dict[Node, float] = {}
    walk = Walk(graph)
    for batch in inputs:
        for node, _, _, value in walk.steps(*batch):
            for part in tensors_in(value):
                found[node] = max(found.get(node, 0.0), finite(part))
    return found


def keep_near(graph: GraphModule, plan: Plan) -> None:
    """Settle what stays in FP32 by its values, or by what it computes; the rest goes to FP16."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or node not in plan.largest or not computes(node):
            continue
        largest = max(plan.largest.get(part, 0.0) for part in (node, *node.all_input_nodes))
        if largest >= NEAR:
            keep(node, too_large(largest), plan)
        elif op_name(node).rstrip("_") in SENSITIVE:
            plan.sensitive.add(node)


def computes(node: Node) -> bool:
    """Whether it has a type of its own: what moves values, or writes into them, has that of its input."""
    if packet(node) in MOVES or node.target is operator.getitem:
        return False
    return not written(node) and any(float_kind(part) for part in node.all_input_nodes)


def written(node: Node) -> bool:
    """Whether it changes its first input in place."""
    name = op_name(node)
    return name.endswith("_") and not name.endswith("__")


def float_kind(node: Node) -> bool:
    return any(part.dtype == torch.float32 for part in tensors_in(node.meta.get("val")))


def keep(node: Node, reason: str, plan: Plan) -> None:
    plan.kept[node] = reason
    plan.sensitive.discard(node)


def working(graph: GraphModule, plan: Plan, inputs: Sequence[tuple[Tensor, ...]]) -> GraphModule:
    """The program in FP16; an operation that fails on the data goes back to FP32, one after the other.

    Where it stands in FP32 already, what it reads goes there as well.
    """
    for _ in range(TRIES):
        made, origin = rewritten(graph, plan)
        failed = first_failure(made, origin, graph, inputs)
        if failed is None:
            return made
        node, why = failed
        for part in to_blame(node, plan):
            keep(part, why if part is node else f"read by {op_name(node)}: {why}", plan)
    raise Unsupported("too many operations of the model fail in FP16", why=why, fix="bf16 or fp32")


def to_blame(node: Node, plan: Plan) -> list[Node]:
    """The node, or the nearest before it that are still in FP16."""
    todo: list[Node] = [node]
    found: list[Node] = []
    while todo and not found:
        found = [one for one in todo if computes(one) and not in_fp32(one, plan)]
        todo = [part for one in todo for part in one.all_input_nodes]
    return found


def in_fp32(node: Node, plan: Plan) -> bool:
    return node in plan.kept or node in plan.sensitive


def rewritten(graph: GraphModule, plan: Plan) -> tuple[GraphModule, dict[str, Node]]:
    """A new program with casts where the precision changes, and for each of its nodes the original."""
    made = torch.fx.Graph()
    writer = Writer(graph, made, plan)
    for node in graph.graph.nodes:
        writer.copy(node)
    module = GraphModule(writer.root, made)
    delete_unread(module)
    return module, {twin.name: node for node, twin in writer.twins.items()}


class Writer:
    """Copies nodes one after the other; each knows in which precision it came out."""

    def __init__(self, graph: GraphModule, made: torch.fx.Graph, plan: Plan) -> None:
        self.root, self.made, self.plan = twin_of(graph), made, plan
        self.twins: dict[Node, Node] = {}
        self.types: dict[Node, torch.dtype] = {}
        self.casts: dict[tuple[Node, torch.dtype], Node] = {}
        self.written = written_into(graph, plan)

    def copy(self, node: Node) -> None:
        kind = self.kind(node)
        args: Any = map_arg(node.args, lambda one: self.as_type(one, kind))
        kwargs: Any = map_arg(node.kwargs, lambda one: self.as_type(one, kind))
        twin = self.made.create_node(node.op, node.target, args, kwargs, node.name)
        twin.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
        self.twins[node] = twin
        self.types[node] = kind or torch.float32

    def kind(self, node: Node) -> torch.dtype | None:
        """The type it is computed in; None where its inputs are to be left as they are."""
        if node.op == "output":
            return torch.float32
        if node.op != "call_function" or node not in self.plan.largest:
            return None if node.op != "call_function" else self.comparing(node)
        if computes(node):
            kept = in_fp32(node, self.plan) or node in self.written
            return torch.float32 if kept or fixed(node) else torch.float16
        first = next((part for part in node.all_input_nodes if part in self.plan.largest), None)
        return self.types[first] if first is not None else None

    def comparing(self, node: Node) -> torch.dtype | None:
        """An operation with no float result reads floats of one type."""
        types = {self.types[part] for part in node.all_input_nodes if part in self.plan.largest}
        return torch.float32 if len(types) > 1 else None

    def as_type(self, node: Node, kind: torch.dtype | None) -> Node:
        twin = self.twins[node]
        if kind is None or self.types[node] is kind or not is_float_tensor(node):
            return twin
        if (node, kind) not in self.casts:
            self.casts[node, kind] = self.cast(node, twin, kind)
        return self.casts[node, kind]

    def cast(self, node: Node, twin: Node, kind: torch.dtype) -> Node:
        if node.op == "get_attr" and kind is torch.float16:
            name = f"in_fp16.{str(node.target).replace('.', '_')}"
            return self.made.get_attr(
                put(self.root, name, tensor_at(self.root, str(node.target)).detach().half())
            )
        return self.made.call_function(torch.ops.aten.to.dtype, (twin, kind))


def is_float_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


def fixed(node: Node) -> bool:
    """Whether the user asks for FP32 by name, or it is no operation that has another precision."""
    asked = torch.float32 in (*node.args, *node.kwargs.values())
    return asked or isinstance(node.target, torch._ops.HigherOrderOperator)


def written_into(graph: GraphModule, plan: Plan) -> set[Node]:
    """Operations whose results are changed in place to something that stays in FP32."""
    found: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        if node.op != "call_function" or computes(node) or not node.all_input_nodes:
            continue
        near = max(plan.largest.get(part, 0.0) for part in (node, *node.all_input_nodes)) >= NEAR
        if node in found or node in plan.kept or (written(node) and near):
            if written(node) and near and node not in plan.kept:
                plan.kept[node] = too_large(plan.largest.get(node, 0.0))
            found |= {node, node.all_input_nodes[0]}
    return found


def first_failure(
    made: GraphModule, origin: Mapping[str, Node], graph: GraphModule, inputs: Sequence[tuple[Tensor, ...]]
) -> tuple[Node, str] | None:
    """The operation that has no FP16 kernel, or gives NaN or infinity where FP32 gives none; and why."""
    for batch in inputs:
        at: list[str] = []
        try:
            with foreign(Unsupported, "PyTorch does not compute it in FP16"):
                if found := not_finite(made, origin, graph, batch, at):
                    return found
        except Unsupported as error:
            return origin[at[-1]], f"PyTorch does not compute it in FP16: {error.why.splitlines()[0]}"
    return None


def not_finite(
    made: GraphModule,
    origin: Mapping[str, Node],
    graph: GraphModule,
    batch: tuple[Tensor, ...],
    at: list[str],
) -> tuple[Node, str] | None:
    """``at`` gets the name of the operation that is about to run."""
    plain = Walk(graph).steps(*batch)
    walk = Walk(made)
    walk.env, walk.args_iter = {}, iter(batch)
    for node in made.graph.nodes:
        if node.name in origin:
            at.append(node.name)
        walk.env[node] = walk.run_node(node)
        if node.name not in origin:
            continue
        wanted = next(value for one, _, _, value in plain if one is origin[node.name])
        if all(map(all_finite, tensors_in(wanted))) and not all(map(all_finite, tensors_in(walk.env[node]))):
            return origin[node.name], f"in FP16 it gives NaN or infinity; in FP32, {said(wanted)}"
        for done in walk.user_to_last_uses.get(node, []):
            del walk.env[done]
    return None


def all_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def said(value: Any) -> str:
    return f"values up to {max((finite(part) for part in tensors_in(value)), default=0.0):.3g}"


def named(node: Node) -> str:
    """The module that computes it, or its operation where that is the model itself."""
    return module_of(node) or node.name
