"""A server CPU: every runtime with every precision; what cannot be had is refused with a reason."""

from __future__ import annotations

from karui import runtimes
from karui.budget import Budget
from karui.numerics import PRECISIONS, WEIGHT_BITS
from karui.presets import _narrower, _spaces
from karui.recipe import Recipe, parse_recipe
from karui.space import Space

FIRST = (
    "fp32@torch_eager",
    "fp32@onnxruntime",
    "fp32@openvino",
    "fp32@torch_compile",
    "int8@onnxruntime",
    "int8@openvino",
    "int8_dynamic@onnxruntime",
    "int8@onnxruntime:quantizer=onnxruntime",
    "int8@openvino:quantizer=nncf",
    "fp32@torchscript",
    "fp32@aot_inductor",
)
NARROWED = ("onnxruntime", "openvino")
TIMED = ("fp32@onnxruntime", "fp32@openvino", "int8@onnxruntime", "int8@openvino")
SPARSEST = tuple(
    f'iterative:prune="prune_weights:sparsity=0.95",rounds=3,recover=["finetune:steps=300"] + {what}'
    for what in ("fp32@onnxruntime", "int8@onnxruntime")
)
ELSEWHERE = ("executorch", "coreml", "litert", "ort_web", "tensorrt")  # they have presets of their own
COMPUTED = tuple(precision for precision in PRECISIONS if precision not in WEIGHT_BITS)
WEIGHTS = (  # arithmetic in float, activations in 8 bits: where one row at a time waits for the weights
    "int4_weights@onnxruntime:accuracy_level=4",
    "int8_weights@onnxruntime:accuracy_level=4",
    "int8_weights@openvino:accuracy_level=4",
)
SMALLEST = (  # where bytes count
    "int4_weights@onnxruntime:form=dequantize,opset=21",
    "int8_weights@onnxruntime:form=dequantize,opset=21",
    "int4_weights@openvino",
    "int8_weights@openvino",
    "int8@openvino:compress_xml=true",
)
LAST = ("fp32@torch_compile:mode=reduce-overhead", "fp32@torch_compile:mode=max-autotune")


def recipes(budget: Budget, *, trains: bool = False) -> list[Recipe]:
    """Likely winners first, then narrower networks, then the rest of runtimes x precisions, then compile
    modes. A limit on the latency is also a goal for narrowing; one on the size asks for zeros as well, and
    for weights in few bits with float arithmetic.

    trains: narrower networks are also trained.
    """
    here = [name for name in runtimes.names() if name not in ELSEWHERE]
    grid = [f"{precision}@{runtime}" for precision in COMPUTED for runtime in here]
    limit = budget.max_latency_s
    goal = [f"prune_channels:latency_s={limit} + {where}" for where in TIMED] if limit else []
    narrower = _narrower.calibrated(NARROWED) + (_narrower.trained(NARROWED, budget) if trains else [])
    weights = (*(SMALLEST if _narrower.small(budget) else ()), *WEIGHTS)
    smaller = (
        *_narrower.zeros(("onnxruntime",), budget),
        *(SPARSEST if trains and _narrower.small(budget) else ()),
    )
    ordered = dict.fromkeys([*FIRST, *goal, *narrower, *smaller, *grid, *weights, *LAST])
    return [parse_recipe(text) for text in ordered if text.rpartition("@")[2].split(":")[0] in here]


def space(budget: Budget, *, trains: bool = False) -> Space:
    here = [name for name in runtimes.names() if name not in ELSEWHERE]
    return _spaces.composed(here, COMPUTED, budget, trains=trains)
