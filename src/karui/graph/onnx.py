"""The captured model as a plain ONNX file, and what the runtimes that read ONNX share.

An exported file keeps the names of the user's model: initializers are its parameters
(``head.weight``), and each node is named after its module (``head/linear``), so that rules by module
path find their nodes. The exporter's bookkeeping (stack traces with local paths) is taken out.
"""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import logging
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.artifact import RANGES, Signature
from karui.errors import BuildFailed, Unsupported, foreign
from karui.numerics import WEIGHT_BITS, Numerics

if TYPE_CHECKING:
    from karui.data import Array, Arrays
    from karui.runtimes import Ask

OPSET = 20
LARGE_BYTES = 2_000_000_000  # a protobuf file holds less than 2 GiB; larger weights go beside it
BATCH = "batch"
SCOPES = "pkg.torch.onnx.name_scopes"
REWRITTEN = "pkg.onnxscript.rewriter.rule_name"
ROOT = "model"  # the attribute under which the captured program holds the user's model


def export_onnx(captured: Path, signature: Signature, path: Path, opset: int = OPSET) -> None:
    """Write ``captured/model.pt2`` as ``path``; a ``captured/model.onnx`` is copied as it is.

    The batch axis is called ``batch`` where the signature has a dynamic one. The export is kept in
    ``captured`` for the next build. Raises BuildFailed when the model cannot be exported, or when the
    file is not what was asked for.
    """
    given, kept = captured / "model.onnx", captured / f"exported-{opset}.onnx"
    if given.is_file():
        kept = given
    elif not kept.is_file():
        with tempfile.TemporaryDirectory(dir=captured) as draft:
            export_program(captured / "model.pt2", signature, Path(draft) / kept.name, opset)
            check_file(Path(draft) / kept.name, opset, dynamic=signature.dynamic_batch)
            for file in sorted(Path(draft).iterdir(), reverse=True):  # the model after its weights
                file.replace(captured / file.name)
    weights = captured / f"{kept.name}.data"  # of a large model; it is named inside of the file
    if weights.is_file():
        shutil.copyfile(weights, path.parent / weights.name)
    shutil.copyfile(kept, path)


def export_program(program: Path, signature: Signature, path: Path, opset: int) -> None:
    from karui.graph.program import open_exported

    model = as_onnx(open_exported(program), signature, opset)
    with foreign(BuildFailed, "the exported ONNX model could not be written"):
        write(model, path)


def as_onnx(
    program: Any, signature: Signature, opset: int, translations: Mapping[Any, Any] | None = None
) -> Any:
    """An exported program as an ``onnx_ir`` model with the user's names.

    translations: operations of the program that ONNX does not know, and how they are written.
    """
    import torch

    with (
        foreign(
            BuildFailed,
            "the model could not be exported to ONNX",
            fix="torch.onnx.export(..., dynamo=True) on the model alone tells more",
        ),
        quiet(),
    ):
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=[port.name for port in signature.inputs],
            output_names=output_names(signature),
            verbose=False,
            custom_translation_table=dict(translations or {}),
        )
        assert exported is not None
        tidy(exported.model, signature)
    return exported.model


def write(model: Any, path: Path, *, beside: bool = False) -> None:
    """Save an ``onnx_ir`` model; what is too large for one file goes beside it, or all weights if asked."""
    import onnx_ir as ir

    weights = [value.const_value for value in model.graph.initializers.values()]
    size_bytes = sum(weight.nbytes for weight in weights if weight is not None)
    large = f"{path.name}.data" if beside or size_bytes > LARGE_BYTES else None
    ir.save(model, path, external_data=large)


def output_names(signature: Signature) -> list[str]:
    """Names of the file's outputs: those of the signature, unless an input has the same."""
    taken = {port.name for port in signature.inputs}
    return [f"{port.name}_out" if port.name in taken else port.name for port in signature.outputs]


def tidy(model: Any, signature: Signature) -> None:
    """Give an ``onnx_ir`` model the user's names, its batch axis, and no bookkeeping."""
    name_nodes(model.graph)
    name_initializers(model.graph)
    if signature.dynamic_batch:
        name_batch(model.graph, signature)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    for value in values(model.graph):
        value.metadata_props.clear()


def name_nodes(graph: Any) -> None:
    """Put the module's path before each node's name, and before those of weights folded for it."""
    taken = {value.name for value in values(graph)}
    for node in graph.all_nodes():
        owner, plain = owner_of(node), (node.name or "").removeprefix("node_")
        node.name = f"{owner}/{plain}" if owner else plain
        for value in node.inputs if owner else ():
            if is_weight(value) and not value.name.startswith(f"{ROOT}."):
                rename(value, f"{owner}.{value.name}", taken)


def is_weight(value: Any) -> bool:
    """Whether a node's input is a stored matrix (constants of shapes and axes have lower rank)."""
    return value is not None and value.is_initializer() and len(value.shape or ()) > 1


def owner_of(node: Any) -> str:
    """The path of the module a node came from, without ``model.``.

    Its scope tells, except for a fused node, which carries the scope of the last (a batch norm's);
    there the weight tells.
    """
    weights = [
        value.name
        for value in node.inputs
        if value is not None and value.is_initializer() and value.name.startswith(f"{ROOT}.")
    ]
    if weights and REWRITTEN in node.metadata_props:
        return str(weights[0].rpartition(".")[0].partition(".")[2])
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    inside = scopes[-2] if len(scopes) > 1 else ""
    return str(inside.removeprefix(f"{ROOT}.")) if inside.startswith(f"{ROOT}.") else ""


def name_initializers(graph: Any) -> None:
    taken = {value.name for value in values(graph)}
    for value in list(graph.initializers.values()):
        rename(value, value.name.removeprefix(f"{ROOT}."), taken)


def rename(value: Any, name: str, taken: set[str]) -> None:
    """Rename an initializer unless the name is taken, or the world outside knows it."""
    if name not in taken and not value.is_graph_output():
        taken.add(name)
        value.name = name


def values(graph: Any) -> Iterator[Any]:
    """Inputs, initializers and everything computed."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs


def drop_unread(graph: Any) -> None:
    """Take out of an ``onnx_ir`` graph what is computed or stored and never read; its ports stay."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


def name_batch(graph: Any, signature: Signature) -> None:
    """Call the batch axis ``batch`` wherever its symbol stands, also in products such as ``2*s95``."""
    import onnx_ir as ir

    symbols = {str(value.shape[0]) for value in graph.inputs if value.shape}
    found = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in sorted(symbols)))
    for value in values(graph):
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    dim if isinstance(dim, int) or dim.value is None else found.sub(BATCH, str(dim.value))
                    for dim in value.shape
                ]
            )
    for value, port in zip(graph.outputs, signature.outputs, strict=True):
        value.shape = ir.Shape([BATCH, *port.shape[1:]])


def check_file(path: Path, opset: int, *, dynamic: bool) -> None:
    """Raise BuildFailed unless the file is valid, of the opset asked for, and of dynamic batch if so."""
    import onnx

    with foreign(BuildFailed, "the exported ONNX file is not valid"):
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
    found = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if found != opset:
        raise BuildFailed(
            f"the exporter wrote ONNX opset {found} instead of {opset}",
            why="it could not convert every operator",
            fix="ask for opset 18 or later",
        )
    ports = [*model.graph.input, *model.graph.output]
    axes = {port.type.tensor_type.shape.dim[0].dim_param for port in ports}
    if dynamic and axes != {BATCH}:
        raise BuildFailed("the exported ONNX file has no dynamic batch axis", why=f"it has {sorted(axes)}")


def refuses_rules(numerics: Numerics) -> str | None:
    """Why rules or facts cannot be honoured; an INT8 model may keep layers in FP32, nothing else.

    Weights in few bits with arithmetic in float are made for no runtime that asks here.
    """
    if bits := WEIGHT_BITS.get(numerics.default):
        return f"weights in {bits} bits with arithmetic in float are not made for it"
    if numerics.facts:
        return f"it cannot honour what earlier steps know: {', '.join(numerics.facts)}"
    if numerics.rules and not numerics.default.startswith("int8"):
        return f"it runs the whole model in {numerics.default}; only INT8 takes rules"
    other = {precision for _, precision in numerics.rules} - {"fp32", numerics.default}
    return f"a layer of an INT8 model can stay in fp32, not in {', '.join(sorted(other))}" if other else None


def refuses_table(ask: Ask, own: str) -> str | None:
    """Why karui's table of ranges cannot be had; ``own``: what the runtime's own quantizer is called."""
    if ask.form == "torch":
        return None
    return f"the model was given as ONNX, and ranges are kept by torch module: quantizer={own}"


def refuse_learned(captured: Path) -> None:
    """Raise Unsupported where steps have settled ranges: a quantizer that finds its own would drop them."""
    if (captured / RANGES).is_file():
        raise Unsupported(
            "earlier steps have settled ranges of weights or activations, and this quantizer finds its own",
            fix="int8 with the quantizer karui",
        )


def only_recurrent(layers: Mapping[str, int]) -> str:
    """The recurrent layers of a model that has no other layer with a weight matrix, else nothing."""
    other = any(is_product(layer) or "Conv" in layer for layer in layers)
    return "" if other else ", ".join(name for name in ("LSTM", "GRU", "RNN") if name in layers)


def is_product(layer: str) -> bool:
    """Whether a torch module of that class is, or holds, a product with a stored matrix."""
    return layer.endswith(("Linear", "Cell")) or "Attention" in layer or layer.startswith("Transformer")


def kept_in_float(paths: Mapping[str, str], numerics: Numerics) -> list[str]:
    """Those of ``paths`` (node name -> module path) that a rule keeps in FP32.

    Raises Unsupported when a rule fits no layer: a rule that does nothing is a mistake.
    """
    for pattern, _ in numerics.rules:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths.values()):
            known = ", ".join(sorted(set(paths.values()) - {""})[:12]) or "none has a name"
            raise Unsupported(
                f"no layer fits the rule {pattern!r}",
                why=f"layers: {known}",
                fix="write the layer's module path, or a pattern over it",
            )
    return [name for name, path in paths.items() if numerics.of(path) == "fp32"]


def path_of(node: str, weight: str = "") -> str:
    """The module path told by a node's name (``head/linear``), or else by its weight's."""
    owner, slash, _ = node.removeprefix("fused ").partition("/")
    return owner if slash and owner else weight.rpartition(".")[0]


def batches(arrays: Arrays, signature: Signature, at_most: int) -> Iterator[Arrays]:
    """All samples in order, ``at_most`` at a time.

    A model of fixed batch gets whole batches; the last is filled up with its last sample.
    """
    import numpy as np

    count = len(next(iter(arrays.values())))
    size = at_most if signature.dynamic_batch else signature.batch
    for start in range(0, count, size):
        stop = min(start + size, count) if signature.dynamic_batch else start + size
        rows = np.arange(start, stop).clip(max=count - 1)
        yield {name: np.ascontiguousarray(array[rows]) for name, array in arrays.items()}


def answers(predict: Callable[[Arrays], list[Array]], arrays: Arrays, signature: Signature) -> list[Array]:
    """Flat outputs on all samples, computed in batches of at most 256."""
    import numpy as np

    count = len(next(iter(arrays.values())))
    parts = [predict(batch) for batch in batches(arrays, signature, 256)]
    return [np.concatenate(pieces)[:count] for pieces in zip(*parts, strict=True)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Converters warn, log and print about themselves; only their errors are let through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def every_node(graph: Any) -> Iterator[Any]:
    """Nodes of a graph and of the branches and loops inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from every_node(inner)
