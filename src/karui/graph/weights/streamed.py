"""Weights in few bits, made from files tensor by tensor: never is a whole model in memory.

The program runs with each weight read where it is used and let go after. On the way through the calibration
data, a layer is rounded when its inputs are known, and goes on rounded (Frantar et al. 2022,
arXiv:2210.17323); what was rounded lies in files until it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final, overload

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from karui.artifact import Signature
from karui.errors import Unsupported
from karui.graph.call import tensors_of
from karui.graph.capture import Flat, exported
from karui.graph.consumers import rows_in, tensor_at
from karui.graph.gram import Moments
from karui.graph.onnx import answers, batches, quiet
from karui.graph.program import predictor, without_guards
from karui.graph.ranges.program import check_rules
from karui.graph.shards import Shards, is_blank
from karui.graph.trace import ROOT, packet, twin_of
from karui.graph.weights.groups import Stored, grids, per_row, size_of
from karui.graph.weights.options import Packing
from karui.graph.weights.store import (
    DATA_ROWS,
    KEPT,
    OP,
    Account,
    Place,
    WeightOnly,
    aten,
    places,
    precision_of,
    weight_of,
)
from karui.host import give_back
from karui.numerics import WEIGHT_BITS, Numerics

if TYPE_CHECKING:
    from karui.data import Array, Arrays
    from karui.runtimes import Source

PIECE = 1 << 21  # values that are rounded at a time

Give = Callable[[int, str, Tensor | None], Tensor]  # number of a place, its weight's path, the reader's input


@final
class Spool(Sequence[Stored]):
    """Rounded weights in files of a folder, by number; the sequence reads one when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.without: list[Stored] = []  # all but the numbers themselves

    def append(self, one: Stored) -> None:
        parts = {"whole": one.whole, "scale": one.scale, "zero": one.zero}
        save_file({name: part.contiguous() for name, part in parts.items()}, self.path(len(self.without)))
        nothing = torch.empty(0)
        self.without.append(replace(one, whole=nothing, scale=nothing, zero=nothing))

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    @overload
    def __getitem__(self, number: int) -> Stored: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Stored]: ...

    def __getitem__(self, number: int | slice) -> Stored | Sequence[Stored]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not 0 <= number < len(self.without):
            raise IndexError(number)
        give_back()
        parts = load_file(self.path(number))
        # what is small is kept by who asks, and would keep all of the mapped file in memory
        small = {name: parts[name].clone() for name in ("scale", "zero")}
        return replace(self.without[number], whole=parts["whole"], scale=small["scale"], zero=small["zero"])

    def __len__(self) -> int:
        return len(self.without)


@dataclass(frozen=True)
class Streamed:
    """A program without weights, and where they are. names: by path in the model, name in the files."""

    graph: GraphModule
    signature: Signature
    shards: Shards
    names: Mapping[str, str]

    def twin(self) -> Streamed:
        """The same, to be changed."""
        return replace(self, graph=twin_of(self.graph))

    def read(self, path: str) -> Tensor:
        """path: with or without ``trace.ROOT``."""
        return self.shards.read(self.names[path.removeprefix(ROOT)])

    def run(self, give: Give | None = None) -> Callable[..., Any]:
        """The program as a function; of the original's weights, or of those that ``give`` gives for marks."""
        return Reader(self.graph, self.read, give or (lambda number, path, x: self.read(path))).run

    def answers(self, arrays: Arrays, give: Give | None = None) -> list[Array]:
        """Flat outputs on ``arrays``, in batches."""
        return answers(predictor(self.run(give), self.signature), arrays, self.signature)

    def rounded(self, source: Source, packing: Packing) -> WeightOnly:
        """Its weights rounded, into files in ``source.folder``.

        The program gets marks, and the values of what stays in float. Raises as ``store.weight_only``.
        """
        calibrated = bool(len(next(iter(source.calibrate.values()), ())))
        with quiet(), torch.no_grad():
            check_rules(self.graph, source.numerics)
            work = Rounding(self, source.numerics, packing, Spool(source.folder), calibrated)
            work.mark()
            if not work.places:
                why = "; ".join(sorted({one["reason"] for one in work.account.fallback})) or "it has none"
                raise Unsupported("no weight of the model would be stored in fewer bits", why=why)
            seen = source.calibrate if calibrated else source.probe
            self.run(work.give)(*tensors_of(next(batches(seen, self.signature, DATA_ROWS))).values())
            reference = self.answers(source.probe, work.give)
        fill(self)
        told = work.account
        return WeightOnly(
            self.graph, work.spool, reference, tuple(told.fallback), told.shares(), dict(told.rounding)
        )


@final
class Reader(Interpreter):
    """Runs a program; a weight is read when its reader is reached, and not kept."""

    def __init__(self, graph: GraphModule, read: Callable[[str], Tensor], give: Give) -> None:
        Interpreter.__init__(self, graph)
        self.program, self.read, self.give = graph, read, give

    def run_node(self, node: Node) -> Any:
        if node.target is OP:
            weight, number = node.args
            assert isinstance(weight, Node) and isinstance(number, int)
            reader = next(iter(node.users))
            x = self.env[reader.args[0]] if packet(reader) is aten.linear else None  # type: ignore[index]
            return self.give(number, str(weight.target), x)
        if node.op == "get_attr" and is_blank(tensor_at(self.program, str(node.target))):
            marked = all(user.target is OP for user in node.users)
            return None if marked else self.read(str(node.target))
        return Interpreter.run_node(self, node)


def streamed(model: nn.Module, signature: Signature, example: Arrays, shards: Shards, names: Any) -> Streamed:
    """The program of a blank model. Raises BuildFailed where ``torch.export`` cannot see the whole of it."""
    program, dynamic = exported(Flat(model, signature).eval(), example, signature.batch)
    graph = without_guards(program.module())
    graph = GraphModule(graph, graph.graph)
    read_late(graph)
    return Streamed(graph, replace(signature, dynamic_batch=dynamic), shards, names)


def read_late(graph: GraphModule) -> None:
    """A weight of its own for each reader, just before it: so none is kept from one reader to the next."""
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        for user in list(node.users):
            with graph.graph.inserting_before(user):
                late = graph.graph.get_attr(str(node.target))
            late.meta = dict(node.meta)
            user.replace_input_with(node, late)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


@dataclass
class Rounding:
    """Rounds the weights of a streamed program, in the order in which they are first read."""

    program: Streamed
    numerics: Numerics
    packing: Packing
    spool: Spool
    calibrated: bool
    account: Account = field(default_factory=Account)
    places: list[tuple[Place, int]] = field(default_factory=list)

    def mark(self) -> None:
        """Put marks before the readers of what will be stored in few bits; the rest is told."""
        graph = self.program.graph
        found = list(places(graph))
        self.account.leave_others(graph, found)
        for place in found:
            precision = precision_of(place, self.numerics)
            if precision == "fp32":
                self.account.leave(graph, place.readers[0], place.path, KEPT)
                continue
            self.mark_at(place, len(self.places))
            self.places.append((place, WEIGHT_BITS[precision] if place.linear else 8))
        graph.graph.lint()
        graph.recompile()

    def mark_at(self, place: Place, number: int) -> None:
        graph = self.program.graph.graph
        for reader in place.readers:
            weight = weight_of(reader)
            with graph.inserting_before(reader):
                mark = graph.call_function(OP, (weight, number))
            mark.meta = {key: weight.meta[key] for key in ("val",) if key in weight.meta}
            reader.replace_input_with(weight, mark)

    def give(self, number: int, path: str, x: Tensor | None) -> Tensor:
        """The rounded weight; rounded now where it is read for the first time."""
        if number == len(self.spool):
            self.spool.append(self.rounded(number, path, x))
        return self.spool[number].floats()

    def rounded(self, number: int, path: str, x: Tensor | None) -> Stored:
        place, bits = self.places[number]
        weight = self.program.read(path).float()
        self.account.sizes[str(bits)] += weight.numel()
        if not place.linear:
            self.account.rounding["nearest"] += 1
            return replace(in_pieces(weight, lambda part: per_row(part).round(part, place.path)), table=True)
        group = size_of(weight.shape[1], self.packing.group)
        if self.packing.rounds(bits, calibrated=self.calibrated) == "nearest":
            self.account.rounding["nearest"] += 1
            return in_pieces(
                weight, lambda part: grids(part, bits, group, self.packing).round(part, place.path)
            )
        assert x is not None
        moments = Moments(ones=False)
        moments.add(rows_in(place.readers[0], x))
        self.account.rounding["gptq"] += 1
        one = grids(weight, bits, group, self.packing).round(weight, place.path, moments.H[0])
        return replace(one, whole=one.whole.to(torch.uint8))


def in_pieces(weight: Tensor, round_: Callable[[Tensor], Stored]) -> Stored:
    """``weight`` rounded some rows at a time: on the way a row takes several times its bytes."""
    parts = [round_(part) for part in torch.split(weight, max(1, PIECE // weight.shape[1]))]
    return replace(
        parts[0],
        whole=torch.cat([one.whole.to(torch.uint8) for one in parts]),
        scale=torch.cat([one.scale for one in parts]),
        zero=torch.cat([one.zero for one in parts]),
    )


def fill(program: Streamed) -> None:
    """Give what stays in float its values: norms and biases, and matrices that a rule keeps.

    A weight behind a mark gets one zero for all of its values, which converters can look at for nothing.
    """
    for node in program.graph.graph.nodes:
        if node.op != "get_attr" or not is_blank(tensor_at(program.graph, str(node.target))):
            continue
        owner, _, name = str(node.target).rpartition(".")
        shape = tensor_at(program.graph, str(node.target)).shape
        marked = all(user.target is OP for user in node.users)
        value = torch.zeros(1).expand(shape) if marked else program.read(str(node.target)).clone()
        setattr(program.graph.get_submodule(owner), name, nn.Parameter(value, requires_grad=False))
