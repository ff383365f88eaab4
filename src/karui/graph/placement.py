"""Where and how PyTorch computes a program: on a CPU or an NVIDIA GPU, in which layout, cast as it goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from karui.graph.capture import HALF
from karui.graph.program import bare, flat, open_exported

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays


@dataclass(frozen=True)
class Placement:
    """device: "cpu" or "cuda". channels_last: images as (n, height, width, channels) in memory. autocast: the
    precision in which products are computed while weights stay float32; None for that of the program.
    """

    device: str = "cpu"
    channels_last: bool = False
    autocast: str | None = None

    def refuses(self, precision: str) -> str | None:
        """Why PyTorch cannot compute so here, or not in ``precision``."""
        if self.device == "cuda" and not torch.cuda.is_available():
            lack = "sees none" if torch.version.cuda else "is built without CUDA"
            return f"device=cuda needs an NVIDIA GPU, and PyTorch {torch.__version__} {lack}"
        if self.device == "cuda" and precision.startswith("int8"):
            return "these INT8 kernels are those of CPUs: try int8@tensorrt"
        if self.autocast and precision != self.autocast:
            return f"autocast={self.autocast} computes in {self.autocast}, not in {precision}"
        return None

    def told(self) -> list[str]:
        """In words, what is not as always."""
        how = {"device": self.device * (self.device != "cpu"), "autocast": self.autocast}
        named = [f"{name} {value}" for name, value in how.items() if value]
        return named + ["channels last"] * self.channels_last

    def open(self, path: Path) -> GraphModule:
        """The program of a ``.pt2`` file, with its weights there."""
        program = open_exported(path)
        if self.device != "cpu":
            exact_float32()
            program = move_to_device_pass(program, self.device)
        graph = bare(program.module())
        if self.channels_last:
            graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return graph

    def given(self, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.channels_last and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor if self.device == "cpu" else tensor.to(self.device)

    def casting(self) -> contextlib.AbstractContextManager[Any]:
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device, HALF[self.autocast])

    def predictor(self, module: Callable[..., Any], signature: Signature) -> Callable[[Arrays], list[Array]]:
        """``module`` as a function of numpy arrays. Answers are copied back, which waits for the GPU."""
        names = [port.name for port in signature.inputs]
        kinds = [getattr(torch, port.dtype) for port in signature.outputs]

        def predict(arrays: Arrays) -> list[Array]:
            tensors = [self.given(arrays[name]) for name in names]
            with torch.no_grad(), self.casting():
                outputs = flat(module(*tensors))
            return [back(output, kind) for output, kind in zip(outputs, kinds, strict=True)]

        return predict


PLAIN = Placement()


def back(output: torch.Tensor, kind: torch.dtype) -> Array:
    ready = output.dtype is kind and output.device.type == "cpu"  # asked first: a cast costs a microsecond
    return (output if ready else output.to("cpu", kind)).numpy()


def exact_float32() -> None:
    """Else convolutions in float32 would be computed with 10 bits (TF32), which is not what FP32 says."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
