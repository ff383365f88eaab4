"""Weights that are mostly one value, stored in an ONNX file as where the others lie and what they are.

The file stays plain ONNX: a function of standard operators puts each weight together (graph/packing), and
ONNX Runtime computes it once, when the file is opened, and folds the result in; every number (a -0.0 becomes
0.0) and every kernel stay as they were. (NonZero would find the bits, but ONNX Runtime never folds it.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from karui.errors import BuildFailed, foreign
from karui.graph.packing import Packed, packed

DOMAIN = "karui.zeros"
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
FUNCTIONS = {"gaps": ("FromGaps", FROM_GAPS), "bits": ("FromBits", FROM_BITS)}


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
        sparse = {one.name: found for one in model.graph.initializer if (found := packed_of(one))}
        if not sparse:
            return 0
        before = path.stat().st_size
        rewrite(model, sparse, opset)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return before - path.stat().st_size


def packed_of(initializer: Any) -> Packed | None:
    """None where nothing would be gained."""
    import onnx

    if initializer.data_location == onnx.TensorProto.EXTERNAL or initializer.data_type not in packable():
        return None
    return packed(onnx.numpy_helper.to_array(initializer))


def packable() -> tuple[int, ...]:
    """Types that every operator of the functions takes."""
    from onnx import TensorProto

    return (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8)


def rewrite(model: Any, sparse: dict[str, Packed], opset: int) -> None:
    """Replace initializers by calls, which come before everything else."""
    from onnx import helper, numpy_helper

    graph = model.graph
    whole = [one for one in graph.initializer if one.name not in sparse]
    calls = []
    for name, one in sparse.items():
        parts = {"fill": one.fill, "places": one.places, "values": one.values, "shape": one.shape}
        whole += [numpy_helper.from_array(np.asarray(part), f"{name}.{key}") for key, part in parts.items()]
        inputs = [f"{name}.{key}" for key in parts]
        calls.append(
            helper.make_node(FUNCTIONS[one.form][0], inputs, [name], f"{name}/unpack", domain=DOMAIN)
        )
    nodes = [*calls, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(whole)
    graph.node.extend(nodes)
    declare(model, {one.form for one in sparse.values()}, opset)


def declare(model: Any, forms: set[str], opset: int) -> None:
    from onnx import helper, parser

    texts = [FUNCTIONS[form][1].format(opset=opset) for form in sorted(forms)]
    model.functions.extend(map(parser.parse_function, texts))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
