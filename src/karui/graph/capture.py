"""Capturing a model once, as files that every runtime builds from.

``model.pt2``: the program seen by ``torch.export``, with a dynamic batch where the model allows one.
``traced.pt``: the TorchScript trace, for the runtime that wants it; absent when tracing failed.
"""

from __future__ import annotations

import dataclasses
import warnings
from contextlib import redirect_stderr
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from karui.artifact import Signature
from karui.blame import users_code
from karui.errors import BuildFailed, KaruiError, foreign
from karui.graph.call import arguments, tensors_of
from karui.graph.onnx import quiet
from karui.structure import flatten

if TYPE_CHECKING:
    from karui.data import Arrays

EXAMPLE_ROWS = 16  # some lowerings plan memory for fewer rows when the example has fewer
LARGEST_BATCH = 4096
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Flat(nn.Module):
    """``model`` with flat tensor arguments and flat outputs: the form every capture sees.

    With ``dtype``, the model is cast to that half precision; floating inputs are cast on the way
    in, floating outputs come back as float32. Module paths in the capture start with ``model.``.
    """

    def __init__(self, model: nn.Module, signature: Signature, dtype: torch.dtype | None = None) -> None:
        nn.Module.__init__(self)
        self.model = model if dtype is None else model.to(dtype)
        self.style, self.names = signature.style, [port.name for port in signature.inputs]
        self.dtype = dtype

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = [cast(tensor, self.dtype) for tensor in tensors]
        args, kwargs = arguments(self.style, dict(zip(self.names, given, strict=True)))
        leaves = flatten(self.model(*args, **kwargs))[0]
        back = [cast(leaf, self.dtype and torch.float32) for leaf in leaves]
        return back[0] if len(back) == 1 else tuple(back)


def cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


def capture(
    model: nn.Module,
    signature: Signature,
    example: Arrays,
    folder: Path,
    precision: str = "fp32",
    calibrate: Arrays | None = None,
) -> Signature:
    """Export ``model`` (a private float32 copy in eval mode, consumed) into ``folder``.

    calibrate: data on which FP16 is held against its largest number; the example where there are none.
    Returns the signature with ``dynamic_batch`` as it turned out. Raises BuildFailed when ``torch.export``
    cannot see the whole program (data-dependent branches, foreign code).
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat = Flat(model, signature, None if precision == "fp16" else HALF.get(precision)).eval()
    program, dynamic = exported(flat, example, signature.batch)
    with foreign(BuildFailed, "the exported program could not be saved"):
        stored = BytesIO()  # torch's own writer ends the whole process when the disk is full
        torch.export.save(program, stored)
    (folder / "model.pt2").write_bytes(stored.getbuffer())
    signature = dataclasses.replace(signature, dynamic_batch=dynamic)
    data = calibrate if calibrate and len(next(iter(calibrate.values()))) else example
    seen = halved(folder, signature, data) if precision == "fp16" else flat
    trace(seen, repeat(example, EXAMPLE_ROWS if dynamic else signature.batch), folder / "traced.pt")
    return signature


def halved(folder: Path, signature: Signature, data: Arrays) -> nn.Module:
    """The program in ``folder`` in FP16 from now on, as a module of flat tensors."""
    from karui.graph import half
    from karui.graph.program import open_program

    half.halve(folder, signature, data)
    return open_program(folder / "model.pt2")


def exported(
    flat: Flat, example: Arrays, batch: int, least: int = 1
) -> tuple[torch.export.ExportedProgram, bool]:
    """The program with a dynamic batch where the model allows one (then True), else with ``batch`` rows.

    least: rows that the dynamic batch has at least; a norm over the batch knows none of one row.
    """
    try:
        return export(flat, repeat(example, EXAMPLE_ROWS), least=least), True
    except KaruiError:
        return export(flat, repeat(example, batch), dynamic=False), False


def repeat(arrays: Arrays, rows: int) -> Arrays:
    """Exactly ``rows`` samples, repeating those given."""
    import numpy as np

    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in arrays.items()}


def export(
    flat: Flat, arrays: Arrays, *, dynamic: bool = True, least: int = 1
) -> torch.export.ExportedProgram:
    tensors = tuple(tensors_of(arrays).values())
    batch = torch.export.Dim("batch", min=least, max=LARGEST_BATCH)
    shapes = (tuple({0: batch} for _ in tensors),) if dynamic else None
    with (
        users_code(
            BuildFailed,
            "torch.export could not capture the model",
            fix="replace data-dependent branches by torch.where or torch.cond",
        ),
        quiet(),
        redirect_stderr(StringIO()),  # torch prints the half-made graph of a model that it refuses
    ):
        return torch.export.export(flat, tensors, dynamic_shapes=shapes, strict=False)


def trace(flat: nn.Module, arrays: Arrays, path: Path) -> None:
    """Write the TorchScript trace; a model that cannot be traced simply leaves no file."""
    try:
        with foreign(BuildFailed, "TorchScript could not trace the model"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(flat, tuple(tensors_of(arrays).values()), check_trace=False)  # type: ignore[no-untyped-call]
            stored = traced.save_to_buffer()
    except BuildFailed:
        return
    path.write_bytes(stored)
