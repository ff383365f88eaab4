"""How weights are rounded and written: the options of weights in few bits, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BLOCKS = 21  # the first opset whose DequantizeLinear knows blocks and 4 bits


@dataclass(frozen=True)
class Packing:
    """How weights are put on their grids.

    group: columns that share a scale, at most; fewer where the columns are no multiple. ends: where a group's
    grid ends. rounding: gptq takes calibration data; None is gptq for 4 bits where there are such data.
    """

    group: int = 64
    symmetric: bool = False
    ends: str = "minmax"
    rounding: Literal["gptq", "nearest"] | None = None

    def rounds(self, bits: int, *, calibrated: bool) -> str:
        return self.rounding or ("gptq" if bits == 4 and calibrated else "nearest")


@dataclass(frozen=True)
class Writing:
    """form: of products. accuracy_level: of MatMulNBits: 0 is float arithmetic, 4 activations in 8 bits."""

    form: Literal["nbits", "dequantize"] = "nbits"
    accuracy_level: int = 0
