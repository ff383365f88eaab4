"""A graph that is run again and again on the same batches, each time from where nothing before has changed.

Layers are refitted, and damage is measured, one after the other along the graph: what comes before the
change is the same in every run. It is kept for as many batches as fit into a bound of memory, and computed
again for the others, so that the work grows with the depth of a network and not with its square.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from karui.graph.program import flat
from karui.graph.trace import Walk

KEPT_BYTES = 1 << 29  # of results, for all batches together


@dataclass(frozen=True)
class Kept:
    """The results that are still needed when the node at ``place`` is next."""

    env: dict[Node, Any]
    place: int
    size_bytes: int


class Rerun:
    """``data``: batches of flat inputs. The graph's weights may change in place between two runs."""

    def __init__(
        self, graph: GraphModule, data: Sequence[tuple[Tensor, ...]], most_bytes: int = KEPT_BYTES
    ) -> None:
        self.data, self.free_bytes = data, most_bytes
        self.walk, self.nodes = Walk(graph), list(graph.graph.nodes)
        self.place = {node.name: i for i, node in enumerate(self.nodes)}
        self.mutates = any(writes(node) for node in self.nodes)
        self.kept: dict[int, Kept] = {}
        self.runs = 0  # of nodes that compute
        self.reads: dict[int, int] = {}  # a stored tensor -> where it is first read, under whatever name
        for node in self.nodes:
            if node.op == "get_attr":
                stored = id(operator.attrgetter(str(node.target))(graph))
                first = min((self.place[user.name] for user in node.users), default=len(self.nodes))
                self.reads[stored] = min(first, self.reads.get(stored, first))

    def first_read(self, tensors: Iterable[Tensor]) -> int:
        """Place of the first node that reads one of these stored tensors."""
        return min((self.reads.get(id(one), len(self.nodes)) for one in tensors), default=len(self.nodes))

    @torch.no_grad()
    def values(self, batch: int, names: Collection[str], settled: int) -> dict[str, Any]:
        """Results of some nodes on a batch; none that are computed before ``settled`` will change again."""
        env, start = self.start(batch, names, settled)
        found = {node.name: self.own(env[node]) for node in env if node.name in names}
        self.walk.env = env
        for place in range(start, len(self.nodes)):
            if place == settled > start:
                self.keep(batch, env, place)
            if place >= settled and len(found) == len(names):
                break
            node = self.nodes[place]
            env[node] = self.walk.run_node(node)
            self.runs += node.op.startswith("call")
            if node.name in names:
                found[node.name] = self.own(env[node])
            for done in self.walk.user_to_last_uses.get(node, []):
                del env[done]
        return found

    def answers(self, batch: int, settled: int) -> list[Tensor]:
        """What the graph gives out."""
        output = self.nodes[-1].name
        return list(flat(self.values(batch, {output}, settled)[output]))

    def start(self, batch: int, names: Collection[str], settled: int) -> tuple[dict[Node, Any], int]:
        """Results to go on from, and the place of the next node."""
        kept = self.kept.get(batch)
        if kept is not None and kept.place > settled:
            self.free_bytes += self.kept.pop(batch).size_bytes
            kept = None
        live = set() if kept is None else {node.name for node in kept.env}
        if kept is None or any(self.place[name] < kept.place and name not in live for name in names):
            self.walk.args_iter = iter(self.data[batch])
            return {}, 0
        return self.apart(kept.env), kept.place

    def keep(self, batch: int, env: Mapping[Node, Any], place: int) -> None:
        before = self.kept.get(batch)
        free, needed = self.free_bytes + (before.size_bytes if before else 0), size_of(env)
        if needed <= free:
            self.free_bytes = free - needed
            self.kept[batch] = Kept(self.apart(env), place, needed)

    def apart(self, env: Mapping[Node, Any]) -> dict[Node, Any]:
        """What a run may go on with: where operations write into their operands, a copy that shares none."""
        if not self.mutates:
            return dict(env)
        computed = [node for node in env if node.op != "get_attr"]
        return {**env, **dict(zip(computed, copy.deepcopy([env[node] for node in computed])))}

    def own(self, value: Any) -> Any:
        """What later operations do not write into."""
        return value.clone() if self.mutates and isinstance(value, Tensor) else value


def writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return isinstance(node.target, torch._ops.HigherOrderOperator) or bool(schema and schema.is_mutable)


def size_of(env: Mapping[Node, Any]) -> int:
    """Bytes of what was computed; a storage that several results share counts once."""
    found: dict[int, int] = {}
    for node, value in env.items():
        if node.op in ("call_function", "call_module"):
            for part in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(part, Tensor):
                    found[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return sum(found.values())
