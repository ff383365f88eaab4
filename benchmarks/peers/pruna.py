"""Pruna: its algorithms that take any PyTorch model on a CPU.

What it gives back is a module; it is exported or traced, so that it is timed without Pruna's own wrapper.
"""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.peers._given import Given
from benchmarks.peers._user import save_program

ALONE = (
    "torch==2.13.0",
    "pruna==0.3.4",
    "huggingface_hub==1.33.0",  # 0.3.4 cannot be imported with a newer one
    "pillow",
)

for name in ("nms", "qnms"):  # torchvision expects them; its own are missing where torch has no CUDA
    torch.library.define(f"torchvision::{name}", "(Tensor boxes) -> Tensor")


def torch_compile(given: Given) -> str:
    smashed(given, "torch_compile")
    save_program(given.model, tuple(tensor[:1].clone() for tensor in given.example), given.out / "model.pt2")
    return "fp32@torch_compile"


def half(given: Given) -> str:
    model = smashed(given, "half")

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            given = (one.half() if one.is_floating_point() else one for one in inputs)
            return self.model(*given).float()

    save_program(Half(), tuple(tensor[:1].clone() for tensor in given.example), given.out / "model.pt2")
    return "fp16@torch_eager"


def torch_dynamic(given: Given) -> str:
    save_traced(given, smashed(given, "torch_dynamic"))
    return "fp32@torchscript"


def torch_unstructured(given: Given) -> str:
    save_traced(given, smashed(given, "torch_unstructured"))
    return "fp32@torchscript"


def torch_structured(given: Given) -> str:
    save_traced(given, smashed(given, "torch_structured"))
    return "fp32@torchscript"


def smashed(given: Given, algorithm: str) -> Any:
    from pruna import SmashConfig, smash

    config = SmashConfig([algorithm], device="cpu")
    return smash(model=given.model, smash_config=config).model


def save_traced(given: Given, model: Any) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(model, tuple(tensor[:1] for tensor in given.example))
    torch.jit.save(torch.jit.freeze(traced.eval()), given.out / "model.pt")
