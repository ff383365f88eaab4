"""What an ONNX file must be like for TensorRT 10 and 11, checked with neither of them.

Networks are strongly typed there: every precision stands in the file, and nothing but the file decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from karui.errors import BuildFailed
from karui.graph.tensorrt.grids import PAIR, grids
from karui.graph.tensorrt.operators import (
    DOUBLE,
    DYNAMIC_FORMS,
    INT8,
    INTEGER_FORMS,
    OPSETS,
    TYPES,
    UINT8,
)
from karui.graph.tensorrt.seen import Seen, Violation, attribute, called

POOLS = ("MaxPool", "AveragePool", "LpPool")
FOREIGN = ("STRING", "INT16", "UINT16", "UINT32", "UINT64", "COMPLEX64", "COMPLEX128", "that is no tensor")
OURS = ("", "ai.onnx")  # the names of ONNX's own domain
FOUND = 5  # violations that an error names


def violations(model: Any) -> list[Violation]:
    """Everything in an ``onnx.ModelProto`` that TensorRT would refuse, or compute otherwise than it says.

    Raises BuildFailed for a model whose types do not fit together.
    """
    seen = Seen(model)
    rules = (opset, inputs, types, operators, restrictions, grids)
    return [one for rule in rules for one in rule(seen)]


def require(model: Any) -> None:
    """Raise BuildFailed with what is wrong, unless nothing is."""
    found = violations(model)
    if not found:
        return
    more = f"; and {len(found) - FOUND} more" if len(found) > FOUND else ""
    raise BuildFailed(
        f"TensorRT would not take the file: {found[0].where}: {found[0].what}",
        why="; ".join(map(str, found[:FOUND])) + more,
        fix=found[0].fix,
    )


def opset(seen: Seen) -> Iterator[Violation]:
    for entry in seen.model.opset_import:
        if entry.domain in OURS and entry.version not in OPSETS:
            why = f"TensorRT 11 reads {OPSETS[0]} to {OPSETS[-1]}"
            yield Violation("opset_import", f"ONNX opset {entry.version}", why, "tensorrt:opset=20")


def inputs(seen: Seen) -> Iterator[Violation]:
    """Only the first axis may be open: the engine's profile is written for a range of batches."""
    for value in seen.graph.input:
        shape = seen.shapes.get(value.name)
        if shape is None:
            yield Violation(
                value.name, "an input of unknown rank", "a profile needs its shape", "name its axes"
            )
        elif open_axes := [axis for axis, size in enumerate(shape) if axis and size is None]:
            what = f"axis {open_axes[0]} of an input is dynamic"
            yield Violation(value.name, what, "only the batch may be", "export it with that size fixed")


def types(seen: Seen) -> Iterator[Violation]:
    ends = {value.name for value in (*seen.graph.input, *seen.graph.output)}
    for name, kind in seen.types.items():
        if kind == DOUBLE:
            yield Violation(name, "64-bit floats", "they would be clamped to 32 bits", "export it in float32")
        elif kind in FOREIGN:
            yield Violation(
                name, f"a value of type {kind}", "TensorRT has none", "compute it before the model"
            )
        elif kind == UINT8 and name not in ends and not of_grid(seen, name):
            why = "they may be inputs and answers only"
            yield Violation(name, "unsigned 8-bit integers inside", why, "use int32 there")
    for sparse in seen.graph.sparse_initializer:
        yield Violation(
            sparse.values.name, "a sparse initializer", "the parser reads dense ones", "store it dense"
        )


def of_grid(seen: Seen, name: str) -> bool:
    """Whether a tensor belongs to quantization, whose rules have their own words."""
    near = [*seen.readers.get(name, ()), *([seen.producer[name]] if name in seen.producer else [])]
    return any(node.op_type in (*PAIR, *INTEGER_FORMS, *DYNAMIC_FORMS) for node in near)


def operators(seen: Seen) -> Iterator[Violation]:
    """What the parser does not know, and what it does not compute in the type asked for."""
    for node in seen.nodes:
        where, kind = called(node), node.op_type
        if kind in INTEGER_FORMS:
            why = "TensorRT takes float operators between DequantizeLinear and QuantizeLinear"
            yield Violation(where, f"the integer operator {kind}", why, "quantize it in the QDQ form")
        elif kind in DYNAMIC_FORMS:
            why = "TensorRT's scales are constants"
            yield Violation(where, f"ranges found at run time ({kind})", why, "static ranges: int8@tensorrt")
        elif node.domain not in OURS:
            what = f"the operator {kind} of the domain {node.domain}"
            yield Violation(where, what, "the parser knows ONNX's own", "write it in plain operations")
        elif kind not in TYPES:
            why = "it is not in the parser's table of operators"
            yield Violation(where, f"the operator {kind}", why, "write it in other operations, or a plugin")
        elif kind not in PAIR:
            yield from operand(seen, node)


def operand(seen: Seen, node: Any) -> Iterator[Violation]:
    """The type that an operator computes in: that of its first input, which for Where is a condition."""
    where, kind = called(node), node.op_type
    found = seen.types.get(next(iter(node.input[1:] if kind == "Where" else node.input), ""))
    if found == INT8:
        fix = "dequantize before it"
        yield Violation(where, f"{kind} on 8-bit integers", "only DequantizeLinear reads them", fix)
    elif found is not None and found not in (*TYPES[kind], *FOREIGN, DOUBLE, UINT8):
        yield Violation(where, f"{kind} on {found}", f"it takes {', '.join(TYPES[kind])}", "cast before it")


def restrictions(seen: Seen) -> Iterator[Violation]:
    """Of single operators, as far as exported models meet them."""
    for node in seen.nodes:
        for broken, what, why, fix in conditions(seen, node):
            if broken:
                yield Violation(called(node), what, why, fix)


def conditions(seen: Seen, node: Any) -> Iterator[tuple[bool, str, str, str]]:
    kind, many = node.op_type, sum(map(bool, node.output)) > 1
    if kind in POOLS:
        flat = len(seen.shapes.get(node.input[0], [None] * 4)) < 4
        yield flat, f"{kind} over one axis", "pools are 2D or 3D", "give what it pools a second axis, of 1"
        dilated = any(step != 1 for step in attribute(node, "dilations", []))
        yield dilated, f"{kind} with dilations", "they must be 1", "a pool without them"
        yield many and kind == "MaxPool", "MaxPool with indices", "it has no such output", "ask for none"
    elif kind == "LayerNormalization":
        yield (
            many,
            "LayerNormalization with its mean",
            "only the first output exists",
            "compute the mean apart",
        )
    elif kind == "LSTM":
        other = bool(attribute(node, "layout", 0) or attribute(node, "input_forget", 0))
        yield other, "LSTM with layout or input_forget", "both must be 0", "transpose around it"
    elif kind == "TopK":
        yield not attribute(node, "sorted", 1), "TopK that is not sorted", "it must be", "sorted=True"
    elif kind == "Resize":
        other = bool(attribute(node, "antialias", 0)) or attribute(node, "mode", b"") == b"cubic"
        yield other, "Resize, cubic or with antialiasing", "it does nearest and linear", "mode='bilinear'"
