"""An NVIDIA GPU: TensorRT, ONNX Runtime's providers and PyTorch on it.

Where there is none, files for TensorRT are made and held against its rules, and nothing is timed.
"""

from __future__ import annotations

from karui.budget import Budget
from karui.presets import _narrower, _spaces
from karui.recipe import Recipe, parse_recipe
from karui.space import Space

ENGINES = (
    "fp16@tensorrt",
    "int8@tensorrt",
    "bf16@tensorrt:opset=22",
    "fp32@tensorrt",
    "int8@tensorrt:quantizer=onnxruntime",
    "int8_dynamic@tensorrt",
)
PROVIDERS = (
    "fp32@onnxruntime:provider=cuda",
    "fp16@onnxruntime:provider=cuda",
    "fp16@onnxruntime:provider=tensorrt",
)
TORCH = (
    "fp32@torch_eager:device=cuda",
    "fp16@torch_eager:device=cuda,channels_last=true",
    "fp16@torch_eager:device=cuda,channels_last=true,autocast=fp16",
    "bf16@torch_eager:device=cuda,channels_last=true,autocast=bf16",
    "fp32@torch_compile:device=cuda",
    "fp16@torch_compile:device=cuda,channels_last=true",
    "fp16@torch_compile:mode=reduce-overhead,device=cuda,channels_last=true",
    "fp16@torch_compile:mode=max-autotune,device=cuda,channels_last=true",
    "fp16@torch_compile:backend=tensorrt,device=cuda",
    "bf16@torch_compile:mode=max-autotune,device=cuda,channels_last=true,autocast=bf16",
)
# The zeros that sparse tensor cores skip.
SPARSE = tuple(f'prune_weights:pattern="2:4" + {precision}@tensorrt' for precision in ("fp16", "int8"))
NARROWED = ("tensorrt",)


def recipes(budget: Budget, *, trains: bool = False) -> list[Recipe]:
    """Engines first, then the others as they are, then zeros and narrower networks. A limit on the latency is
    a goal too.

    trains: narrower networks are also trained.
    """
    limit = budget.max_latency_s
    goal = [f"prune_channels:latency_s={limit} + fp16@tensorrt"] if limit else []
    narrower = _narrower.calibrated(NARROWED) + (_narrower.trained(NARROWED, budget) if trains else [])
    ordered = dict.fromkeys([*ENGINES, *PROVIDERS, *TORCH, *goal, *SPARSE, *narrower])
    return [parse_recipe(text) for text in ordered]


def space(budget: Budget, *, trains: bool = False) -> Space:
    runtimes = (*NARROWED, "torch_compile:device=cuda,channels_last=true", "onnxruntime:provider=cuda")
    return _spaces.composed(runtimes, ("fp32", "fp16", "bf16", "int8"), budget, trains=trains)
