"""Quantization-aware training: the model learns to live with the rounding, and the grids with the model.

Jacob et al. 2018, arXiv:1712.05877 (training with rounding, statistics of norms frozen late); Esser et al.
2020, arXiv:1902.08153 and Bhalgat et al. 2020, arXiv:2004.09576 (learned grids); Hinton et al. 2015,
arXiv:1503.02531 (the original as teacher, which needs no labels).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

from torch import Tensor, nn

from karui.errors import UsageError
from karui.graph.inspect import private_copy
from karui.graph.quantize_aware import QuantAware, Rounding, aware_of
from karui.graph.ranges.profiles import weight_bits
from karui.graph.ranges.table import Range, load_table
from karui.graph.training import Material, learn
from karui.graph.training.loop import Ways
from karui.graph.training.losses import Aim
from karui.graph.training.options import options_of
from karui.numerics import Calibration
from karui.techniques import Applied, Given, Technique


@final
@dataclass(frozen=True)
class QuantizeAware(Technique):
    """Weights and grids, trained in float32 on the CPU with rounding where ``runtime`` rounds.

    steps, or epochs over the training data; lr of the weights and, relative to each scale, scale_lr; both
    fall to zero as a cosine. bits: of weights, 2 to 8; none for what INT8 kernels of this CPU take (7 where
    they saturate). distill: share of the loss that is the distance to the original's answers; the rest is
    the labels' (cross-entropy for whole numbers, else squares); 1 where there are none. freeze: share of
    the steps after which batch norms keep their statistics. observer: of the ranges it starts from.
    protect: patterns over module paths that stay in float. ranges: a folder of ranges that were learned
    elsewhere (``karui.quantize_aware``), taken over without training.

    Without training data it learns from the calibration inputs alone.
    """

    TRAINS = True

    steps: int = 300
    epochs: int | None = None
    lr: float = 3e-4
    scale_lr: float = 1e-3
    batch: int = 64
    bits: int | None = None
    distill: float | None = None
    freeze: float = 0.7
    observer: Calibration = "minmax"
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    protect: tuple[str, ...] = ()
    ranges: str = ""
    seed: int = 0

    def apply(self, model: nn.Module, data: Given) -> Applied:
        if self.ranges:
            return taken_over(model, Path(self.ranges))
        bits = weight_bits(data.flags) if self.bits is None else self.bits
        rounding = Rounding(bits, self.observer, self.runtime, self.protect)
        twin = private_copy(model)
        aware = aware_of(twin, data.signature, data.inputs, data.calibrate, rounding, data.ranges)
        left = dict.fromkeys(aware.left, "a pattern of protect, or its type, keeps it in float")
        if not aware.steps:
            return Applied(model, (), left or {"model": "it has no convolution or linear layer"})
        told = self.train(aware, model, data)
        facts = {"bits": rounding.weight_bits(), "ranges": len(aware.ranges()), **told}
        return Applied(aware.model, layers_of(aware.ranges()), left, facts, aware.ranges())

    def train(self, aware: QuantAware, teacher: nn.Module, data: Given) -> dict[str, Any]:
        """``aware`` learns in place, with the float original as its teacher."""
        material = Material(data.signature, data.calibrate, data.train, aware.rows)
        groups = partial(aware.groups, self.lr, self.scale_lr)
        folder, watch, effort = data.folder, data.watch, data.effort
        ways = Ways(groups, aware.freeze_norms, folder=folder, watch=watch, effort=effort)
        return learn(aware, teacher, material, Aim(self.distill), options_of(self), ways)


def layers_of(ranges: Iterable[str]) -> tuple[str, ...]:
    """Paths of the modules whose weights have ranges: keys of computed tensors have a colon."""
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in ranges if ":" not in key))


def taken_over(model: nn.Module, folder: Path) -> Applied:
    table = load_table(folder)
    known = dict(model.named_parameters())
    if strange := [
        key for key, one in table.items() if one.role == "weight" and not fits(one, known.get(key))
    ]:
        raise UsageError(
            f"the ranges in {folder} are not of this model",
            why=f"it has no such weight: {', '.join(strange[:3])}",
            fix="give the model that was trained with them: aware.model",
        )
    return Applied(model, layers_of(table), facts={"ranges": len(table)}, ranges=table)


def fits(one: Range, weight: Tensor | None) -> bool:
    return weight is not None and (one.axis < 0 or one.low.shape == weight.shape[one.axis : one.axis + 1])
