"""What OpenVINO reads in a model, and makes of it: module paths; kernels, precisions, stored weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karui.graph.onnx import path_of

if TYPE_CHECKING:
    from karui.graph.weights.store import WeightOnly
    from karui.runtimes import Source

RECURRENT = ("RNNSeq", "RNNCell")
KERNELS = (
    "Convolution",
    "Deconvolution",
    "FullyConnected",
    "MatMul",
    "ScaledDotProductAttention",
    *RECURRENT,
)
INT8 = ("i8", "u8")


@dataclass(frozen=True)
class Kernel:
    """One operation of the compiled graph; ``names`` are those of the operations it stands for."""

    kind: str
    precision: str
    names: tuple[str, ...]


def kernels_of(compiled: Any, products: set[str]) -> list[Kernel]:
    """The compiled graph's products, convolutions and recurrences, also those inside fused subgraphs."""
    ops = compiled.get_runtime_model().get_ordered_ops()
    found = [as_kernel(op) for op in ops if told(op, "layerType") in KERNELS]
    apart = {name for kernel in found for name in kernel.names}
    fused = [as_kernel(op) for op in ops if told(op, "layerType") == "Subgraph"]
    return found + [kernel for kernel in fused if (products - apart).intersection(kernel.names)]


def products_of(model: Any) -> set[str]:
    """Names that a matrix product can have in the compiled graph: its own, or that of its bias's sum."""
    todo = [op for op in model.get_ops() if op.get_type_name() == "MatMul"]
    names: set[str] = set()
    while todo:
        op = todo.pop()
        names.add(op.get_friendly_name())
        if op.get_type_name() != "Add":
            todo += [reader for reader in readers_of(op) if reader.get_type_name() in ("Multiply", "Add")]
    return names


def as_kernel(op: Any) -> Kernel:
    names = told(op, "originalLayersNames").split(",")
    return Kernel(told(op, "layerType"), precision_of(op), tuple(names))


def precision_of(op: Any) -> str:
    """The type of its activations: ``runtimePrecision`` alone may be the one its weights are stored in.

    A subgraph that quantizes for itself takes floats, but its weights are INT8.
    """
    if told(op, "runtimePrecision") == "bf16":
        return "bf16"
    types = types_of(op)
    inner = types if told(op, "layerType") == "Subgraph" else []
    return next((kind for kind in inner if kind in INT8), types[0])


def told(op: Any, key: str) -> str:
    info = op.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def readers_of(op: Any) -> list[Any]:
    return [port.get_node() for output in op.outputs() for port in output.get_target_inputs()]


def listed(kernels: Sequence[Kernel]) -> str:
    counts = Counter(f"{kernel.kind} {kernel.precision}" for kernel in kernels)
    return ", ".join(f"{kind} x{n}" for kind, n in counts.items()) or "no product or convolution"


def executed_weights(
    ops: Sequence[Any],
    source: Source,
    found: WeightOnly,
    accuracy_level: int,
    answering: Mapping[str, str],
) -> dict[str, Any]:
    """Counts of the operations that read weights in few bits; layers that OpenVINO unpacks are told.

    answering: layers by the answers of the model that they give, which OpenVINO calls by that name.
    """
    products = [op for op in ops if told(op, "layerType") == "FullyConnected" and types_of(op)[1:2] in PACKED]
    tables = [op for op in ops if told(op, "layerType") == "Gather" and types_of(op)[0] == "i8"]
    names = {name for op in products for name in told(op, "originalLayersNames").split(",")}
    names = {answering.get(name, path_of(name)) for name in names}
    fallback = [*found.fallback, *unpacked(found, names)]
    bits = Counter(types_of(op)[1] for op in products)
    kernels = [f"FullyConnected {kind} x{many}" for kind, many in sorted(bits.items())]
    kernels += [f"look-ups in 8 bits x{len(tables)}"] if tables else []
    kernels = kernels or ["all weights unpacked when opened"]
    kernels += ["activations in 8 bits, in groups"] if accuracy_level and products else []
    floats = [as_kernel(op) for op in ops if told(op, "layerType") in KERNELS and op not in products]
    detail = [", ".join(kernels), f"in float: {listed(floats)}" if floats else "", found.told()]
    return {
        "precision": source.numerics.default,
        "weight_kernels": len(products) + len(tables),
        "float_kernels": len(floats),
        "detail": "; ".join(part for part in detail if part),
        "fallback": fallback,
    } | found.facts()


PACKED = (["u4"], ["i4"], ["u8"], ["i8"])


def unpacked(found: WeightOnly, names: set[str]) -> list[dict[str, str]]:
    """Layers that are small in the file and float in memory."""
    reason = "stored in few bits, and unpacked when the file is opened"
    return [{"node": layer, "op": "linear", "reason": reason} for layer in sorted(found.layers - names)]


def types_of(op: Any) -> list[str]:
    return [str(port.get_element_type().get_type_name()) for port in op.inputs()]


def module_paths(model: Any) -> dict[str, str]:
    """The module path of each operation, told by its name or by its weight's."""
    plain = ("Constant", "Parameter", "Result")
    return {
        op.get_friendly_name(): path_of(op.get_friendly_name(), weight_of(op))
        for op in model.get_ops()
        if op.get_type_name() not in plain
    }


def weight_of(op: Any) -> str:
    """The name of the parameter behind an operation's second input (``head.bias``), or nothing."""
    todo = [op.input_value(1).get_node()] if op.get_input_size() > 1 else []
    while todo:
        node = todo.pop()
        if node.get_type_name() == "Constant" and "." in node.get_friendly_name():
            return str(node.get_friendly_name())
        if node.get_type_name() in ("Convert", "Transpose", "Reshape", "Multiply"):
            todo += [port.get_node() for port in node.input_values()]
    return ""


def has_attention(model: Any) -> bool:
    """Whether the softmax of one product goes into another."""
    for op in model.get_ops():
        if op.get_type_name() == "ScaledDotProductAttention":
            return True
        into = {reader.get_type_name() for reader in readers_of(op)}
        if op.get_type_name() == "Softmax" and "MatMul" in into:
            return True
    return False
