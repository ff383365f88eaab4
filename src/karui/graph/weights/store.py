"""Which weights of a captured program are stored in few bits, and the program as it then computes.

Linear layers in groups; embeddings, which are only looked up, with 8 bits and a scale for each row. GPTQ
rounds layer after layer on inputs of the program as it then is (Frantar et al. 2022, arXiv:2210.17323).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from karui.artifact import RANGES
from karui.errors import Unsupported
from karui.graph.call import tensors_of
from karui.graph.consumers import rows_in, tensor_at, values_at
from karui.graph.fold import put
from karui.graph.gram import Moments
from karui.graph.onnx import answers, batches, is_product, quiet
from karui.graph.program import predictor
from karui.graph.ranges.calibrate import ROWS, checked
from karui.graph.ranges.places import layer_of
from karui.graph.ranges.program import check_rules, folded
from karui.graph.ranges.table import Range, Table, load_table
from karui.graph.trace import ROOT, module_of, op_name, packet
from karui.graph.weights.groups import Stored, grids, per_row, settled, size_of
from karui.graph.weights.options import Packing
from karui.numerics import WEIGHT_BITS, Numerics

if TYPE_CHECKING:
    from karui.data import Array
    from karui.runtimes import Ask, Source

aten = torch.ops.aten
DATA_ROWS = 128  # samples that GPTQ looks at
MOMENTS_BYTES = 256_000_000  # of second moments that one pass over the data collects
HOME = "stored"  # the submodule that holds rounded weights
KEPT = "kept in FP32 by a rule"


@torch.library.custom_op("karui::stored", mutates_args=())
def stored_weight(weight: Tensor, number: int) -> Tensor:
    """``weight``, the floats that the whole numbers of that number stand for: a mark in the program."""
    return weight.clone()


@stored_weight.register_fake
def _(weight: Tensor, number: int) -> Tensor:
    return torch.empty_like(weight)


OP = torch.ops.karui.stored.default


@dataclass(frozen=True)
class WeightOnly:
    """A program whose weights are the floats that ``stored`` stand for, each behind a mark with its number.

    reference: its answers on the probe. fallback: what stayed in float, with a reason. shares: of the
    weights, by bits. rounding: how often which was used.
    """

    graph: GraphModule
    stored: Sequence[Stored]
    reference: list[Array]
    fallback: tuple[Mapping[str, str], ...]
    shares: Mapping[str, float]
    rounding: Mapping[str, int]

    @property
    def layers(self) -> frozenset[str]:
        """Those that multiply by what is stored."""
        return frozenset(layer_of(one.path) for one in self.stored if not one.table)

    def facts(self) -> dict[str, Any]:
        return {
            "weights": dict(self.shares),
            "groups": sorted({one.group for one in self.stored if not one.table}),
            "rounding": dict(self.rounding),
        }

    def told(self) -> str:
        """In words: the share of each width, and how it was rounded."""
        named = {"4": "in 4 bits", "8": "in 8 bits", "32": "in float"}
        parts = [f"{self.shares[bits]:.1%} {name}" for bits, name in named.items() if self.shares.get(bits)]
        return f"weights: {', '.join(parts)}, rounded by {' and '.join(self.rounding)}"


def refuses(ask: Ask, packing: Packing) -> str | None:
    """Why a model's weights cannot be stored so, before anything is built."""
    if ask.form != "torch":
        return "the model was given as ONNX, and weights in groups are kept by torch module"
    if not any(is_product(layer) or layer.startswith("Embedding") for layer in ask.layers):
        return "no Linear or Embedding layer: no other weights are stored in 4 or 8 bits"
    if packing.rounding == "gptq" and not ask.calibrated:
        return "rounding=gptq needs calibration data; rounding=nearest needs none"
    if packing.ends not in ("minmax", "mse"):
        return f"groups of weights are too small for calibration={packing.ends}: minmax or mse"
    if ask.numerics.facts:
        return f"it cannot honour what earlier steps know: {', '.join(ask.numerics.facts)}"
    other = {precision for _, precision in ask.numerics.rules} - {"fp32", *WEIGHT_BITS}
    return (
        f"a layer's weights stay in fp32 or get 8 or 4 bits, not {', '.join(sorted(other))}"
        if other
        else None
    )


def weight_only(source: Source, packing: Packing) -> WeightOnly:
    """The captured model of ``source`` with its weights stored as its numerics say.

    Raises Unsupported where a rule fits no layer, nothing is left to store, or earlier steps have settled
    what cannot be kept.
    """
    if source.program is not None:
        return source.program.rounded(source, packing)
    with quiet(), torch.no_grad():
        graph, factors = folded(source.folder)
        check_rules(graph, source.numerics)
        work = Storing(graph, packing, source, learned(source, factors))
        work.run()
        if not work.stored:
            why = "; ".join(sorted({one["reason"] for one in work.account.fallback})) or "it has none"
            raise Unsupported("no weight of the model would be stored in fewer bits", why=why)
        reference = answers(predictor(graph, source.signature), source.probe, source.signature)
    return WeightOnly(
        graph,
        tuple(work.stored),
        reference,
        tuple(work.account.fallback),
        work.account.shares(),
        dict(work.account.rounding),
    )


def learned(source: Source, factors: Mapping[str, Tensor]) -> dict[str, Range]:
    """The grids that earlier steps have rounded weights for."""
    table = load_table(source.folder) if (source.folder / RANGES).is_file() else Table()
    if any(one.learned and one.role == "activation" for one in table.values()):
        raise Unsupported(
            "earlier steps have trained ranges of activations, and these stay in float here",
            fix="int8, or no quantize_aware",
        )
    return {
        path: one.times(factors[path]) if path in factors else one
        for path, one in table.items()
        if one.learned
    }


@dataclass(frozen=True)
class Place:
    """A stored weight and those who read it alike: as linear layers, or as an embedding."""

    path: str
    readers: tuple[Node, ...]

    @property
    def linear(self) -> bool:
        return packet(self.readers[0]) is aten.linear

    @property
    def weight(self) -> Node:
        return weight_of(self.readers[0])


@dataclass
class Account:
    """What became of the weights: which stay in float and why, how many have how many bits, and how they were
    rounded.
    """

    fallback: list[Mapping[str, str]] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    rounding: Counter[str] = field(default_factory=Counter)

    def leave(self, graph: GraphModule, node: Node, path: str, reason: str) -> None:
        self.fallback.append({"node": layer_of(path), "op": op_name(node), "reason": reason})
        weight = next(part for part in node.all_input_nodes if part.op == "get_attr")
        self.sizes["32"] += tensor_at(graph, str(weight.target)).numel()

    def leave_others(self, graph: GraphModule, found: Sequence[Place]) -> None:
        """Tell of matrices that are read in another way than by ``found``."""
        mine = {node for place in found for node in place.readers}
        told = set()
        for node in graph.graph.nodes:
            if not is_matrix(graph, node):
                continue
            for reader in node.users:
                if reader not in mine and (node.target, packet(reader)) not in told:
                    told.add((node.target, packet(reader)))
                    self.leave(graph, reader, str(node.target).removeprefix(ROOT), why_float(reader))

    def shares(self) -> dict[str, float]:
        whole = max(self.sizes.total(), 1)
        return {bits: round(many / whole, 4) for bits, many in sorted(self.sizes.items()) if many}


class Storing:
    """One application: the program, which is changed weight by weight, and the account of it."""

    def __init__(
        self, graph: GraphModule, packing: Packing, source: Source, known: Mapping[str, Range]
    ) -> None:
        self.graph, self.packing, self.known, self.numerics = graph, packing, known, source.numerics
        self.data = samples(source)
        self.stored: list[Stored] = []
        self.account = Account()

    def run(self) -> None:
        found = list(places(self.graph))
        self.account.leave_others(self.graph, found)
        for place in found:
            if not place.linear:
                self.embedding(place)
        wanted = [(place, bits) for place in found if place.linear and (bits := self.bits(place))]
        for part in in_passes(self.graph, wanted):
            moments = self.moments([place for place, bits in part if self.looks(place, bits)])
            for place, bits in part:
                self.layer(place, bits, moments.get(place.path))

    def bits(self, place: Place) -> int:
        """0 for a layer that a rule keeps in float."""
        precision = precision_of(place, self.numerics)
        if precision == "fp32":
            self.account.leave(self.graph, place.readers[0], place.path, KEPT)
        return WEIGHT_BITS.get(precision, 0)

    def looks(self, place: Place, bits: int) -> bool:
        """Whether its rounding looks at data."""
        return (
            place.path not in self.known and self.packing.rounds(bits, calibrated=bool(self.data)) == "gptq"
        )

    def moments(self, places: Sequence[Place]) -> dict[str, Tensor]:
        """H of the inputs of each, in one pass over the data."""
        names = {input_of(node) for place in places for node in place.readers}
        found = {place.path: Moments(ones=False) for place in places}
        for inputs in self.data if places else []:
            values = values_at(self.graph, inputs, names)
            for place in places:
                for node in place.readers:
                    name = input_of(node)
                    found[place.path].add(rows_in(node, checked(values[name], name)))
        return {path: one.H[0] for path, one in found.items() if one.rows}

    def layer(self, place: Place, bits: int, H: Tensor | None) -> None:
        weight = tensor_at(self.graph, str(place.weight.target)).detach().float()
        group = size_of(weight.shape[1], self.packing.group)
        known = self.known.get(place.path)
        if known is None:
            self.account.rounding["gptq" if H is not None else "nearest"] += 1
            self.put(place, grids(weight, bits, group, self.packing).round(weight, place.path, H))
            return
        if known.bits > bits:
            raise Unsupported(
                f"{place.path} was rounded to {known.bits} bits",
                why=f"it is to be stored in {bits}",
                fix=f"round_weights:bits={bits}, or int8_weights",
            )
        self.account.rounding["an earlier step"] += 1
        self.put(place, settled(weight, known, bits, group).round(weight, place.path))

    def embedding(self, place: Place) -> None:
        if precision_of(place, self.numerics) == "fp32":
            self.account.leave(self.graph, place.readers[0], place.path, KEPT)
            return
        weight = tensor_at(self.graph, str(place.weight.target)).detach().float()
        self.account.rounding["nearest"] += 1
        self.put(place, replace(per_row(weight).round(weight, place.path), table=True))

    def put(self, place: Place, one: Stored) -> None:
        """Let the readers of a weight read what is stored."""
        number = len(self.stored)
        self.stored.append(one)
        self.account.sizes[str(one.bits)] += one.whole.numel()
        with self.graph.graph.inserting_before(place.readers[0]):
            floats = self.graph.graph.get_attr(put(self.graph, f"{HOME}.w{number}", one.floats()))
            mark = self.graph.graph.call_function(OP, (floats, number))
        mark.meta = {key: place.weight.meta[key] for key in ("val",) if key in place.weight.meta}
        for node in place.readers:
            node.replace_input_with(weight_of(node), mark)
        self.graph.graph.eliminate_dead_code()
        self.graph.recompile()


def samples(source: Source) -> list[tuple[Tensor, ...]]:
    """What GPTQ looks at, in batches."""
    some = {name: rows[:DATA_ROWS] for name, rows in source.calibrate.items()}
    if not len(next(iter(some.values()), ())):
        return []
    return [tuple(tensors_of(part).values()) for part in batches(some, source.signature, ROWS)]


def places(graph: GraphModule) -> Iterator[Place]:
    """In the order in which they are first read."""
    found: dict[tuple[str, Any], list[Node]] = {}
    for node in graph.graph.nodes:
        if packet(node) in (aten.linear, aten.embedding) and is_matrix(graph, weight_of(node)):
            found.setdefault((str(weight_of(node).target), packet(node)), []).append(node)
    for (path, _), readers in found.items():
        yield Place(path.removeprefix(ROOT), tuple(readers))


def input_of(node: Node) -> str:
    return str(node.args[0].name)  # type: ignore[union-attr]


def weight_of(node: Node) -> Node:
    weight: Any = node.args[1 if packet(node) is aten.linear else 0]
    return weight  # type: ignore[no-any-return]


def is_matrix(graph: GraphModule, node: Node) -> bool:
    """Whether it is a stored float tensor of two axes or more."""
    if node.op != "get_attr":
        return False
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(owner), name)
    return isinstance(value, Tensor) and value.ndim > 1 and value.dtype == torch.float32


def precision_of(place: Place, numerics: Numerics) -> str:
    """By the module that computes, or that holds the weight."""
    names = [*(module_of(node) for node in place.readers), layer_of(place.path)]
    return next(
        (found for name in names if (found := numerics.of(name)) != numerics.default), numerics.default
    )


def why_float(node: Node) -> str:
    name = op_name(node)
    if "conv" in name:
        return "a convolution: its kernels take float weights"
    if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        return "a recurrent layer: its kernels take float weights"
    return f"no weight of a linear layer or an embedding: it is read by {name}"


def in_passes(graph: GraphModule, wanted: Sequence[tuple[Place, int]]) -> Iterator[list[tuple[Place, int]]]:
    """Neighbouring layers whose second moments fit into memory together."""
    part: list[tuple[Place, int]] = []
    room = MOMENTS_BYTES
    for place, bits in wanted:
        columns = int(tensor_at(graph, str(place.weight.target)).shape[1])
        needed = 8 * math.prod((columns, columns))
        if part and needed > room:
            yield part
            part, room = [], MOMENTS_BYTES
        part.append((place, bits))
        room -= needed
    if part:
        yield part
