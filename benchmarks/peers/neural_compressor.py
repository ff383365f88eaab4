"""Intel Neural Compressor 3: its PT2E quantization for Inductor, static and dynamic."""

from __future__ import annotations

from typing import Any

from benchmarks.peers._given import Given
from benchmarks.peers._user import save_program

ALONE = (
    "torch==2.13.0",
    "neural-compressor-pt==3.10",
    "transformers==5.24.0",
    "pillow",
    "rich",
)


def static(given: Given) -> str:
    from neural_compressor.torch.quantization import get_default_static_config

    return quantized(given, get_default_static_config())


def dynamic(given: Given) -> str:
    from neural_compressor.torch.quantization import get_default_dynamic_config

    return quantized(given, get_default_dynamic_config())


def quantized(given: Given, config: Any) -> str:
    import torch
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import convert, prepare
    from torch.utils.data import DataLoader

    example = tuple(tensor[:1].clone() for tensor in given.example)
    prepared = prepare(export(given.model, example), config)
    with torch.no_grad():
        for batch in DataLoader(given.calibrate, batch_size=1):
            prepared(*batch)
    save_program(convert(prepared), example, given.out / "quantized.pt2")
    return "int8@torch_compile"
