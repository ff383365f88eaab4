"""``karui::fake_quant``: rounding to a grid of integers, in float, with a gradient.

    q = clamp(round(x / scale) + zero_point, low, high);  y = (q - zero_point) * scale

Rounding is half to even and divides by the scale, as ONNX's QuantizeLinear does, so that the values are
those of the runtimes. The gradient goes straight through inside the range (Bengio et al. 2013,
arXiv:1308.3432); scale and zero point learn as in LSQ (Esser et al. 2020, arXiv:1902.08153) and LSQ+
(Bhalgat et al. 2020, arXiv:2004.09576).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("karui::fake_quant", mutates_args=())
def fake_quant(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int) -> Tensor:
    """``x`` rounded to ``scale * (q - zero_point)`` for integers q from ``low`` to ``high``.

    scale, zero_point: of one number, or of one for each index along ``axis`` (-1 where there is one).
    zero_point holds whole numbers, as floats so that it can learn.
    """
    s, z = along(scale, axis, x), along(zero_point, axis, x).round()
    return (x / s).round_().add_(z).clamp_(low, high).sub_(z).mul_(s)  # in place: training runs it often


@fake_quant.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int) -> Tensor:
    return torch.empty_like(x)


def integers(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int) -> Tensor:
    """The whole numbers, as floats, that stand for ``x``."""
    return ((x / along(scale, axis, x)).round() + along(zero_point, axis, x).round()).clamp(low, high)


def along(values: Tensor, axis: int, x: Tensor) -> Tensor:
    """``values`` in a shape that broadcasts along ``axis`` of ``x``."""
    return values.reshape(()) if axis < 0 else values.reshape([-1] + [1] * (x.ndim - axis - 1))


def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, ctx.low, ctx.high, ctx.axis = inputs
    ctx.save_for_backward(x, scale, zero_point)


def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, scale, zero_point = ctx.saved_tensors
    s, z = along(scale, ctx.axis, x), along(zero_point, ctx.axis, x).round()
    steps = x / s
    q = steps.round().add_(z)
    clamped = q.clamp(ctx.low, ctx.high)
    inside = q == clamped
    through = grad * inside
    for_scale = clamped.sub_(z).sub_(steps.mul_(inside)).mul_(grad)
    step = 1 / math.sqrt(max(x.numel() / scale.numel(), 1) * max(ctx.high, -ctx.low))
    for_zero = None
    if ctx.needs_input_grad[2]:
        for_zero = reduced(through - grad, scale, ctx.axis) * scale * step
    return through, reduced(for_scale, scale, ctx.axis) * step, for_zero, None, None, None


def reduced(values: Tensor, like: Tensor, axis: int) -> Tensor:
    if axis < 0:
        return values.sum().reshape(like.shape)
    return values.sum([i for i in range(values.ndim) if i != axis]).reshape(like.shape)


fake_quant.register_autograd(backward, setup_context=keep)
