"""Weights that are mostly one value, stored in an ONNX file as where the others lie and what they are.

The file stays plain ONNX: a function of standard operators puts each weight together, and ONNX Runtime
computes it once, when the file is opened, and folds the result in; every number (a -0.0 becomes 0.0) and
every kernel stay as they were. Places are written as one byte a weight that is there (the distance from the
one before), or as one bit for every weight, whichever is shorter. (NonZero would find the bits, but ONNX
Runtime never folds it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from karui.errors import BuildFailed, foreign

if TYPE_CHECKING:
    from karui.data import Array

DOMAIN = "karui.zeros"
KEPT_BYTES = 1024  # a smaller weight is not worth a call
WORTH = 0.75  # of its dense bytes; a weight that would take more is left as it is
WIDEST = 255  # the longest distance that one byte holds
SMALLEST_OPSET = 18  # has every operator that is used

FROM_GAPS = """<domain: "karui.zeros", opset_import: ["" : {opset}]>
FromGaps (fill, gaps, values, shape) => (dense) {{
    axis = Constant <value = int64 {{0}}> ()
    one = Constant <value = int64[1] {{1}}> ()
    steps = Cast <to = 7> (gaps)
    ends = CumSum (steps, axis)
    places = Sub (ends, one)
    count = ReduceProd <keepdims = 1> (shape)
    blank = Expand (fill, count)
    flat = ScatterElements <axis = 0> (blank, places, values)
    dense = Reshape (flat, shape)
}}"""
FROM_BITS = """<domain: "karui.zeros", opset_import: ["" : {opset}]>
FromBits (fill, bits, values, shape) => (dense) {{
    shifts = Constant <value = uint8[8] {{0, 1, 2, 3, 4, 5, 6, 7}}> ()
    last = Constant <value = uint8[1] {{1}}> ()
    line = Constant <value = int64[1] {{-1}}> ()
    column = Constant <value = int64[2] {{-1, 1}}> ()
    axis = Constant <value = int64 {{0}}> ()
    bytes = Reshape (bits, column)
    shifted = BitShift <direction = "RIGHT"> (bytes, shifts)
    each = BitwiseAnd (shifted, last)
    marks = Reshape (each, line)
    present = Cast <to = 7> (marks)
    order = CumSum (present, axis)
    places = Mul (order, present)
    table = Concat <axis = 0> (fill, values)
    padded = Gather <axis = 0> (table, places)
    first = Constant <value = int64[1] {{0}}> ()
    count = ReduceProd <keepdims = 1> (shape)
    flat = Slice (padded, first, count)
    dense = Reshape (flat, shape)
}}"""
FUNCTIONS = {"FromGaps": FROM_GAPS, "FromBits": FROM_BITS}


@dataclass(frozen=True)
class Packed:
    """One weight: its most frequent value, where the others lie (as ``function`` reads it), and these."""

    function: str
    fill: Array
    places: Array
    values: Array
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return self.places.nbytes + self.values.nbytes


def pack(path: Path) -> int:
    """Rewrite an ONNX file with its sparse weights packed; gives how many bytes it became smaller.

    A file with nothing to gain, or with weights beside it, is left as it is.
    """
    import onnx

    with foreign(BuildFailed, "the weights of the ONNX file could not be packed"):
        model = onnx.load(str(path), load_external_data=False)
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        if opset < SMALLEST_OPSET:
            return 0
        packed = {one.name: found for one in model.graph.initializer if (found := packed_of(one))}
        if not packed:
            return 0
        before = path.stat().st_size
        rewrite(model, packed, opset)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return before - path.stat().st_size


def packed_of(initializer: Any) -> Packed | None:
    """None where nothing would be gained."""
    import onnx

    if initializer.data_location == onnx.TensorProto.EXTERNAL or initializer.data_type not in packable():
        return None
    dense = onnx.numpy_helper.to_array(initializer)
    dense = np.where(dense == 0, np.zeros((), dense.dtype), dense)  # masks leave many a -0.0
    if dense.nbytes < KEPT_BYTES:
        return None
    found = min(both(dense), key=lambda one: one.size_bytes)
    return found if found.size_bytes < WORTH * dense.nbytes else None


def packable() -> tuple[int, ...]:
    """Types that every operator of the functions takes."""
    from onnx import TensorProto

    return (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8)


def both(dense: Array) -> tuple[Packed, Packed]:
    """By distances and by bits."""
    bits = bits_of(dense).reshape(-1)
    kinds, counts = np.unique(bits, return_counts=True)
    usual = kinds[counts.argmax()]
    flat, fill = dense.reshape(-1), usual.reshape(1).view(dense.dtype)
    there = np.flatnonzero(bits != usual)
    gaps, values = by_gaps(there, flat, fill)
    marks = np.packbits(bits != usual, bitorder="little")  # the spare bits of its last byte are zero
    return (
        Packed("FromGaps", fill, gaps, values, dense.shape),
        Packed("FromBits", fill, marks, flat[there], dense.shape),
    )


def bits_of(dense: Array) -> Array:
    """As whole numbers of the same width: a NaN equals itself."""
    return np.ascontiguousarray(dense).view(f"u{dense.dtype.itemsize}")


def by_gaps(there: Array, flat: Array, fill: Array) -> tuple[Array, Array]:
    """Distances of one byte each; a longer way takes several steps, which put the usual value down."""
    gaps = np.diff(there, prepend=-1)
    stops = (gaps - 1) // WIDEST  # steps on the way to each value
    ends = np.cumsum(stops + 1) - 1
    steps = np.full(len(there) + int(stops.sum()), WIDEST, np.uint8)
    values = np.full(len(steps), fill[0], flat.dtype)
    steps[ends], values[ends] = gaps - stops * WIDEST, flat[there]
    return steps, values


def rewrite(model: Any, packed: dict[str, Packed], opset: int) -> None:
    """Replace initializers by calls, which come before everything else."""
    from onnx import helper, numpy_helper

    graph = model.graph
    whole = [one for one in graph.initializer if one.name not in packed]
    calls = []
    for name, one in packed.items():
        parts = {"fill": one.fill, "places": one.places, "values": one.values, "shape": one.shape}
        whole += [numpy_helper.from_array(np.asarray(part), f"{name}.{key}") for key, part in parts.items()]
        inputs = [f"{name}.{key}" for key in parts]
        calls.append(helper.make_node(one.function, inputs, [name], f"{name}/unpack", domain=DOMAIN))
    nodes = [*calls, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(whole)
    graph.node.extend(nodes)
    declare(model, {one.function for one in packed.values()}, opset)


def declare(model: Any, functions: set[str], opset: int) -> None:
    from onnx import helper, parser

    model.functions.extend(parser.parse_function(FUNCTIONS[name].format(opset=opset)) for name in functions)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
