"""Rules for quantized models: how QuantizeLinear and DequantizeLinear may stand in a file for TensorRT.

Signed integers of 8 bits, zero points of 0, one scale for an activation, one for a weight or for each of its
outputs. Sources: "Explicit Quantization" and "Working with Quantized Types" in NVIDIA's documentation of
TensorRT 10 and 11, and ``QuantDequantLinearHelper`` of its ONNX parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx

from karui.graph.tensorrt.operators import INT8
from karui.graph.tensorrt.seen import Seen, Violation, attribute, called

PAIR = ("QuantizeLinear", "DequantizeLinear")
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SUMS, CLAMPS = ("Add", "Concat"), ("Relu", "Clip")  # a sum is computed on integers, with the clamp behind it


def grids(seen: Seen) -> Iterator[Violation]:
    """Every pair, and every product that reads one."""
    answers = {value.name for value in seen.graph.output}
    for node in seen.nodes:
        if node.op_type in PAIR:
            for rule in (scales, zero_points, axes):
                yield from rule(seen, node)
        if node.op_type in PRODUCTS:
            yield from both_or_none(seen, node)
        if node.op_type == "QuantizeLinear" and answers.intersection(node.output):
            yield Violation(called(node), "a quantized answer", "nothing dequantizes it", "answer in float")


def scales(seen: Seen, node: Any) -> Iterator[Violation]:
    where, stored = called(node), seen.value(node.input[1])
    scale = np.ones(1) if stored is None else np.asarray(stored, np.float64)
    if stored is None:
        yield Violation(
            where, "a scale that is computed", "it must be stored", "static ranges: int8@tensorrt"
        )
    elif not np.isfinite(scale).all():
        yield Violation(where, "a scale that is not finite", "every answer would be NaN", "calibrate again")
    elif not (scale > 0).all():
        yield Violation(where, "a scale that is not positive", "the parser refuses it", "calibrate again")
    if attribute(node, "block_size", 0):
        yield Violation(where, "a scale for each block", "INT8 has none", "a scale for each output")


def zero_points(seen: Seen, node: Any) -> Iterator[Violation]:
    where, kind = called(node), node.op_type
    if kind == "DequantizeLinear" and seen.types.get(node.input[0]) == "INT32":
        why = "TensorRT takes biases in float and dequantizes 8 bits only"
        yield Violation(where, "a bias of 32-bit integers", why, "store it in float (QuantizeBias=False)")
        return
    if len(node.input) < 3 or not node.input[2]:
        signed = attribute(node, "output_dtype", 0) == onnx.TensorProto.INT8
        if kind == "QuantizeLinear" and not signed:
            yield Violation(where, "no zero point", "ONNX then means unsigned integers", "one of type int8")
        return
    found, zero = seen.types.get(node.input[2]), seen.value(node.input[2])
    if found != INT8:
        why = "TensorRT's integers are signed and of 8 bits"
        yield Violation(where, f"a zero point of type {found}", why, "symmetric ranges in int8")
    elif zero is None:
        yield Violation(where, "a zero point that is computed", "it must be a stored 0", "symmetric ranges")
    elif np.any(zero != 0):
        yield Violation(
            where, "a zero point other than 0", "TensorRT's ranges are symmetric", "symmetric ranges"
        )


def axes(seen: Seen, node: Any) -> Iterator[Violation]:
    """One scale for an activation; for a weight one, or one of each output."""
    scale = seen.stored.get(node.input[1])
    count = 1 if scale is None else int(np.prod(scale.dims))
    if count == 1:
        return
    where, weight = called(node), weight_of(seen, node)
    if weight is None:
        what, fix = "an activation with a scale of each channel", "one range for the tensor"
        yield Violation(where, what, "TensorRT takes one for all of it", fix)
        return
    shape = list(weight.dims)
    axis = int(attribute(node, "axis", 1)) % len(shape)
    if count != shape[axis]:
        why = f"{count} for {shape[axis]} indices of axis {axis}"
        yield Violation(where, "not one scale for each output", why, "as many scales as outputs")
        return
    for product, moved in products_of(seen, node.output[0], int):
        right = output_axis(product, len(shape))
        if moved(axis) != right:
            what = f"scales along axis {moved(axis)} of the weight of {product.op_type}"
            why = f"the outputs of {called(product)} are axis {right}"
            yield Violation(where, what, why, "quantize it along its outputs")


def weight_of(seen: Seen, node: Any) -> Any | None:
    """The stored weight that a node quantizes or dequantizes; None for an activation."""
    name = node.input[0]
    return seen.stored.get(seen.producer[name].input[0] if seen.made_by(name) == PAIR[0] else name)


def products_of(
    seen: Seen, name: str, moved: Callable[[int], int]
) -> Iterator[tuple[Any, Callable[[int], int]]]:
    """The products that multiply by a weight, each with where an axis of it has moved on the way."""
    for reader in seen.readers.get(name, ()):
        if reader.op_type in PRODUCTS and list(reader.input).index(name) == 1:
            yield reader, moved
        elif reader.op_type == PAIR[1]:
            yield from products_of(seen, reader.output[0], moved)
        elif reader.op_type == "Transpose" and (order := attribute(reader, "perm")) is not None:
            yield from products_of(seen, reader.output[0], then(moved, list(order)))


def then(moved: Callable[[int], int], order: list[int]) -> Callable[[int], int]:
    return lambda axis: order.index(moved(axis))


def output_axis(product: Any, rank: int) -> int:
    if product.op_type == "Gemm":
        return 0 if attribute(product, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(product.op_type, rank - 1)


def both_or_none(seen: Seen, node: Any) -> Iterator[Violation]:
    """A product runs in INT8 when both of its inputs are dequantized; one alone wins nothing.

    Unless the rounded input serves others as well: other readers, or the sum that made it.
    """
    where, kind = called(node), node.op_type
    given, weight = (seen.made_by(seen.source(name)) == PAIR[1] for name in node.input[:2])
    if weight and not given:
        what, fix = f"{kind} with nothing but its weight in INT8", "quantize its input too"
        yield Violation(where, what, "it would run in float", fix)
    elif given and not weight and not shared(seen, seen.source(node.input[0])):
        what, fix = f"{kind} with nothing but its input in INT8", "quantize its weight too, or neither"
        yield Violation(where, what, "it would run in float", fix)


def shared(seen: Seen, dequantized: str) -> bool:
    quantized = seen.producer[dequantized].input[0]
    before = seen.producer[quantized].input[0] if quantized in seen.producer else ""
    start = seen.producer[before].input[0] if seen.made_by(before) in CLAMPS else before
    return len(seen.readers[dequantized]) > 1 or seen.made_by(start) in SUMS
