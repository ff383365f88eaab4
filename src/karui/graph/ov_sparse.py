"""OpenVINO's sparse weights: INT8 matrices, packed by their zeros in memory until they are multiplied.

Only fewer bytes are fetched, the products are as many: it pays for wide layers that no cache holds, and costs
where one does. So the packed model is timed against the dense one. Kernels: Intel AMX only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from karui.errors import Unsupported
from karui.graph.ov_kernels import told

RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
RATES = (0.5, 0.7, 0.85)  # shares of zeros from which a matrix is packed; 1.0 packs none


@dataclass(frozen=True)
class Packed:
    """A model with ``layers`` packed products, those with at least a share of ``rate`` zeros."""

    rate: float
    layers: int
    ratio: float

    def facts(self) -> dict[str, Any]:
        return {"sparse_layers": self.layers}

    def __str__(self) -> str:
        return f"{self.layers} product(s) packed by their zeros, {self.ratio:.2f}x as fast so"


def fastest(open_at: Callable[[float], Any], call_of: Callable[[Any], Any], rows: int) -> Packed:
    """The rate at which a model is fastest, if it is faster than with no packed weights; ``rows`` of a call.

    open_at: compiles it at a rate. call_of: what calls a compiled model. Raises Unsupported where no product
    is packed, or none is faster so.
    """
    from karui.graph.csr import WORTH, in_turns  # torch, which opening a model does without

    dense = call_of(open_at(1.0))
    found = []
    for rate in RATES:
        compiled = open_at(rate)
        packed = call_of(compiled)
        packed()  # kernels of a batch of any size are chosen at a call
        if layers := packed_layers(compiled):
            found.append(Packed(rate, layers, in_turns(dense, packed)))
    best = max(found, key=lambda one: one.ratio, default=None)
    if best is None or best.ratio < WORTH:
        raise Unsupported(
            f"the model is not faster with its weights packed by their zeros at batch {rows}",
            why=f"{best.ratio:.2f}x with {best.layers} packed"
            if best
            else "OpenVINO packs none of its products",
            fix="more zeros or wider linear layers (of multiples of 64); zeros also make files smaller",
        )
    return best


def packed_layers(compiled: Any) -> int:
    ops = compiled.get_runtime_model().get_ordered_ops()
    return sum("sparse" in told(op, "primitiveType") for op in ops)
