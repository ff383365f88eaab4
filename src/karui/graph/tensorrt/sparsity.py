"""Which layers of an ONNX file have the 2:4 zeros that sparse tensor cores skip.

Of every four weights along the input channels, at one place of the kernel, two are zero: Mishra et al. 2021,
arXiv:2104.08378. The same axes as in NVIDIA's ``polygraphy inspect sparsity``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from karui.graph.tensorrt.grids import PAIR
from karui.graph.tensorrt.seen import Seen, attribute, called


def two_of_four(model: Any) -> tuple[list[str], list[str]]:
    """Names of the layers whose weights could have the pattern, and of those that have it throughout."""
    seen = Seen(model)
    able, done = [], []
    for node in seen.nodes:
        axis = input_axis(node)
        weight = None if axis is None else weight_at(seen, node.input[1])
        if axis is None or weight is None or weight.ndim < 2 or weight.shape[axis] % 4:
            continue
        able.append(called(node))
        groups = np.moveaxis(weight, axis, -1).reshape(-1, 4)
        if (np.count_nonzero(groups, axis=1) <= 2).all():
            done.append(called(node))
    return able, done


def input_axis(node: Any) -> int | None:
    """Of a weight's input channels; None for what is no layer."""
    if node.op_type == "Gemm":
        return 1 if attribute(node, "transB", 0) else 0
    return {"Conv": 1, "MatMul": -2}.get(node.op_type)


def weight_at(seen: Seen, name: str) -> np.ndarray[Any, Any] | None:
    """A stored weight, also behind its QuantizeLinear and DequantizeLinear (0 stays 0 there)."""
    while seen.made_by(name) in PAIR:
        name = seen.producer[name].input[0]
    return seen.value(name)
