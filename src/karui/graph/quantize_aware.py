"""A model that trains as it will be quantized, in any training loop.

``karui::fake_quant`` stands where a runtime rounds, in two graphs of one private copy of the model: one
exported in training mode, one in eval mode. Both read the parameters and buffers of that copy, so it holds
the trained weights afterwards; scales and zero points are learned beside them (graph/ranges/learn). Jacob
et al. 2018, arXiv:1712.05877.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from karui import host
from karui.artifact import Signature
from karui.data import items, read_split, rows_of
from karui.errors import Unsupported, UsageError
from karui.graph.call import signature_of, tensors_of
from karui.graph.capture import Flat, exported
from karui.graph.consumers import tensor_at
from karui.graph.inspect import private_copy
from karui.graph.onnx import batches
from karui.graph.program import bare
from karui.graph.ranges.calibrate import ROWS, calibrate
from karui.graph.ranges.learn import HOME, Places, Step, places_of, put_in
from karui.graph.ranges.observers import per_channel
from karui.graph.ranges.places import Profile
from karui.graph.ranges.profiles import BY_RUNTIME, weight_bits
from karui.graph.ranges.table import Range, Table, save_table, signed
from karui.graph.trace import ROOT, packet
from karui.graph.training.feed import LEAST_ROWS
from karui.numerics import Numerics
from karui.structure import flatten, unflatten

if TYPE_CHECKING:
    from karui.data import Arrays

aten = torch.ops.aten


@dataclass(frozen=True)
class Rounding:
    """What is rounded and how.

    bits: of weights, 2 to 8; None for what INT8 kernels of this CPU take. observer: finds the ranges that
    training starts from. runtime: whose places. protect: patterns over module paths that stay in float.
    """

    bits: int | None = None
    observer: str = "minmax"
    runtime: str = "onnxruntime"
    protect: tuple[str, ...] = ()

    def weight_bits(self) -> int:
        found = weight_bits(host.flags()) if self.bits is None else self.bits
        if not 2 <= found <= 8:
            raise UsageError(f"weights cannot have {found} bits", fix="bits from 2 to 8")
        return found

    def profile(self) -> Profile:
        if self.runtime not in BY_RUNTIME:
            raise UsageError(
                f"no places are known for {self.runtime!r}", fix=f"one of: {', '.join(BY_RUNTIME)}"
            )
        return BY_RUNTIME[self.runtime](saturates=self.weight_bits() < 8)

    def numerics(self) -> Numerics:
        return Numerics("int8", tuple((pattern, "fp32") for pattern in self.protect))


def quantize_aware(
    model: nn.Module,
    inputs: Any,
    calibrate: Any,
    *,
    bits: int | None = None,
    observer: str = "minmax",
    protect: tuple[str, ...] = (),
) -> QuantAware:
    """``model`` as a module for your own training loop that computes as its INT8 form will.

        aware = karui.quantize_aware(net, inputs=x, calibrate=batches)
        optimizer = torch.optim.Adam(aware.groups(lr=3e-4))
        ...                           # your loop; aware.freeze_norms() for its last third
        aware.eval().save_ranges("learned")
        task = karui.Task(aware.model, ...)  # of your class, with the trained weights

    and the recipe ``quantize_aware:ranges=learned + int8@onnxruntime`` makes the INT8 form of it that was
    trained. inputs, calibrate: as in ``Task``; ``calibrate`` gives the ranges that training starts from, by
    ``observer``. bits, protect: as in the technique. ``model`` itself is never touched; one that takes no
    other batch than its example trains on batches of that size.

    Raises BuildFailed where ``torch.export`` cannot see the whole program, Unsupported where no layer can be
    rounded.
    """
    twin = private_copy(model)
    signature, example = signature_of(twin, inputs, rows_of(inputs))
    names = [port.name for port in signature.inputs]
    data = read_split(list(items(calibrate, "calibration")), names, "calibration").inputs
    made = aware_of(twin, signature, example, data, Rounding(bits, observer, protect=protect))
    if not made.steps:
        raise Unsupported("no layer can be rounded", why="; ".join(made.left) or "there is none")
    return made


def aware_of(
    model: nn.Module,
    signature: Signature,
    example: Arrays,
    data: Arrays,
    rounding: Rounding,
    known: Table | None = None,
) -> QuantAware:
    """``model`` (a private copy in eval mode, consumed) ready to train; ``known`` ranges are started from."""
    settled, tree, dynamic = graph_of(model, signature, example, training=False)
    training, train_tree, many = graph_of(model, signature, example, training=True)
    signature = dataclasses.replace(signature, dynamic_batch=dynamic and many)
    places, twin = places_of(settled, rounding.profile(), rounding.numerics())
    steps = steps_of(places, settled, twin, batches(data, signature, ROWS), rounding, known or Table())
    made = QuantAware(model, signature, steps, places.left)
    for graph, known_as, answer in ((settled, "eval", tree), (training, "train", train_tree)):
        put_in(graph, places, steps)
        made.take(graph, known_as, answer)
    freeze(training)
    made.take(training, "frozen", train_tree)
    return made


def graph_of(
    model: nn.Module, signature: Signature, example: Arrays, *, training: bool
) -> tuple[GraphModule, Any, bool]:
    """The graph in one mode, the structure of its answer, and whether it takes any number of rows."""
    flat, trees = Flat(model, signature).train(training), list[Any]()
    told = model.register_forward_hook(lambda _, inputs, answer: trees.append(flatten(answer)[1]))
    try:
        program, dynamic = exported(flat, example, signature.batch, LEAST_ROWS if training else 1)
    finally:
        told.remove()
        flat.eval()
    graph = bare(program.module())
    return GraphModule(graph, graph.graph), trees[-1], dynamic


def steps_of(
    places: Places,
    graph: GraphModule,
    twin: GraphModule,
    data: Iterator[Arrays],
    rounding: Rounding,
    known: Table,
) -> dict[str, Step]:
    """The steps of all places by name, on the ranges that are known or that ``data`` gives."""
    bits, grid = rounding.weight_bits(), signed(rounding.weight_bits())
    found: dict[str, Range] = {}
    for path, axis in places.weights.values():
        ends = per_channel(tensor_at(graph, ROOT + path), axis, rounding.observer, grid)
        fresh = Range(*ends, axis, bits, role="weight")
        found[path] = dataclasses.replace(known[path], bits=bits) if path in known else fresh
    flat = (tuple(tensors_of(part).values()) for part in data)
    table = calibrate(twin, flat, rounding.observer, known.with_(found))
    steps = {f"w{i}": Step(path, one, grid) for i, (path, one) in enumerate(found.items())}
    values = enumerate(dict.fromkeys(places.values.values()))
    return steps | {f"x{i}": Step(key, table[key], rounding.profile().activations) for i, key in values}


def freeze(graph: GraphModule) -> None:
    """Let batch norms use the statistics they have, and count no more batches."""
    for node in list(graph.graph.nodes):
        if packet(node) is aten.batch_norm and node.args[3] is not None:
            node.update_arg(5, False)
        elif packet(node) is aten.add_ and counts(node.args[0]):
            graph.graph.erase_node(node)
    graph.recompile()


def counts(node: Any) -> bool:
    return isinstance(node, Node) and str(node.target).endswith(".num_batches_tracked")


@dataclass(frozen=True)
class Program:
    """The code of one graph, a function of the module it runs in and flat inputs; its answer's structure."""

    forward: Callable[..., Any]
    tree: Any


@final
class QuantAware(nn.Module):
    """Takes and gives what the model takes and gives; tuples, lists and dicts come as plain ones.

    model: the private copy, whose parameters are trained. steps: the grids, learned beside them. left: paths
    of weights that stay in float. rows: samples of a batch, for a model that takes no other number.
    In training mode it computes what the model computes in its own (dropout, statistics of the batch).
    """

    def __init__(
        self, model: nn.Module, signature: Signature, steps: Mapping[str, Step], left: tuple[str, ...]
    ) -> None:
        nn.Module.__init__(self)
        self.model, self.left, self.frozen = model, left, False
        self.steps = nn.ModuleDict(dict(steps))
        self.names = [port.name for port in signature.inputs]
        self.rows = None if signature.dynamic_batch else signature.batch
        self.programs: dict[str, Program] = {}

    def take(self, graph: GraphModule, known_as: str, tree: Any) -> None:
        """Run ``graph`` as one of this module's forms: its code finds here what it read in itself."""
        for node in graph.graph.nodes:
            if node.op == "get_attr" and not str(node.target).startswith((ROOT, f"{HOME}.", "own_")):
                value = operator.attrgetter(node.target)(graph)
                node.target = f"own_{known_as}_{node.target}".replace(".", "_")
                setattr(self, node.target, nn.Buffer(value, False) if isinstance(value, Tensor) else value)
        graph.recompile()
        self.programs[known_as] = Program(type(graph).forward, tree)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.project()
        mode = ("frozen" if self.frozen else "train") if self.training else "eval"
        program = self.programs[mode]
        return unflatten(list(program.forward(self, *self.tensors(args, kwargs))), program.tree)

    def tensors(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The flat inputs of a call in any style."""
        together = len(args) == 1 and isinstance(args[0], Mapping)
        given = {**(args[0] if together else dict(zip(self.names, args))), **kwargs}
        if len(args) > len(self.names) or set(given) != set(self.names):
            raise UsageError("the inputs do not fit the model", why=f"it takes {', '.join(self.names)}")
        return [given[name] for name in self.names]

    def project(self) -> None:
        """Keep scales positive and zero points on their grids; each call does so first."""
        for step in self.grids():
            step.project()

    def grids(self) -> Iterator[Step]:
        for step in self.steps.values():
            assert isinstance(step, Step)
            yield step

    def freeze_norms(self, frozen: bool = True) -> None:
        """From now on batch norms use their running statistics in training too, as they will afterwards."""
        self.frozen = frozen

    def groups(self, lr: float, scale_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Parameters in groups for an optimizer of Adam's kind: the model's at ``lr``, and grids.

        scale_lr: relative to the scale, so that 0.001 is a change of 0.1 % a step. Grids do not decay.
        """
        learned = [one for step in self.grids() for one in (step.size, step.shift) if one.requires_grad]
        weights = [one for one in self.model.parameters() if one.requires_grad]
        return [
            {"params": weights, "lr": lr},
            {"params": learned, "lr": scale_lr, "weight_decay": 0.0},
        ]

    def ranges(self) -> Table:
        """What was learned, for the runtimes: ranges of tensors, and of weights before norms are folded."""
        return Table({step.key: step.range() for step in self.grids()})

    def save_ranges(self, folder: Path | str) -> None:
        """Keep ``ranges()`` in ``folder``, for ``quantize_aware:ranges=folder``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_table(self.ranges(), Path(folder))
