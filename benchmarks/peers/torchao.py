"""torchao: quantization of an exported program for Inductor on x86."""

from __future__ import annotations

from benchmarks.peers._given import Given
from benchmarks.peers._user import save_program


def static(given: Given) -> str:
    return pt2e(given, dynamic=False)


def dynamic(given: Given) -> str:
    return pt2e(given, dynamic=True)


def pt2e(given: Given, *, dynamic: bool) -> str:
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torch.utils.data import DataLoader
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = tuple(tensor[:1].clone() for tensor in given.example)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    prepared = prepare_pt2e(torch.export.export(given.model, example).module(), quantizer)
    with torch.no_grad():
        for batch in DataLoader(given.calibrate, batch_size=1):
            prepared(*batch)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    save_program(converted, example, given.out / "quantized.pt2")
    return "int8@torch_compile"
