"""How each runtime likes its quantized model: measured, where it can be run (docs/quantization.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from karui import host
from karui.graph.ranges.places import BETWEEN, CONVS, LAYERS, SUMS, TRANSPOSED, Profile
from karui.graph.ranges.table import S7, S8, S8_AFFINE, S8_WHOLE, U8

aten = torch.ops.aten


def onnxruntime(*, saturates: bool, per_channel: bool = True) -> Profile:
    """As OpenVINO, with biases as integers; every move and layer with a clamp is on a grid too.

    So are results of ``Gemm`` before a sum, which would be computed in float else.
    """
    return dataclasses.replace(
        openvino(saturates=saturates, per_channel=per_channel),
        bias="int32",
        clamped=True,
        moved=True,
        matrices=True,
    )


def ort_web(*, saturates: bool = False) -> Profile:
    """As ONNX Runtime elsewhere; its WebAssembly kernels widen products, so that nothing saturates."""
    return onnxruntime(saturates=False)


def openvino(*, saturates: bool, per_channel: bool = True) -> Profile:
    """u8 activations and s8 weights; results of convolutions on a grid, or its kernel stays in float.

    It carries integers through moves by itself, and rounds anew for every pair that stands behind one. Sums
    that only a layer norm reads cost more on integers than in float.
    """
    return Profile(
        activations=U8,
        weights=S7 if saturates else S8,
        outputs=(*CONVS, *TRANSPOSED),
        between=BETWEEN,
        products=False,
        per_channel=per_channel,
        moved=False,
        unread=False,
    )


def inductor(*, saturates: bool) -> Profile:
    """Rounded only before layers: it fuses what stands between them, and measured slower with more."""
    return Profile(activations=U8, weights=S7 if saturates else S8, products=False)


def executorch(*, saturates: bool = False) -> Profile:
    """For XNNPACK: s8 activations; it takes no layer whose result is not on a grid, the answer's neither.

    Its kernels widen products to 32 bits, so that nothing saturates on any CPU.
    """
    return Profile(
        activations=S8_AFFINE,
        weights=S8,
        outputs=LAYERS,
        between=BETWEEN,
        products=False,
        clamped=True,
        answers=True,
    )


def litert(*, saturates: bool = False) -> Profile:
    """For XNNPACK again, behind LiteRT's converter, which joins what stands between two roundings."""
    return executorch(saturates=saturates)


def tensorrt() -> Profile:
    """Symmetric everywhere, zero points of zero, biases in float; on a grid before layers and around sums.

    NVIDIA, "Working with Quantized Types" (TensorRT 10 documentation): explicit Q/DQ.
    """
    return Profile(activations=S8_WHOLE, weights=S8_WHOLE, between=SUMS, products=False)


BY_RUNTIME: dict[str, Callable[..., Profile]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torch_compile": inductor,
    "aot_inductor": inductor,
    "executorch": executorch,
    "ort_web": ort_web,
    "litert": litert,
}


def weight_bits(flags: frozenset[str]) -> int:
    """Of the weights that INT8 kernels take without saturating on a CPU with these instruction sets."""
    return 7 if host.saturates(flags) else 8
