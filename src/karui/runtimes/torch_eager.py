"""PyTorch in eager mode: the reference every other runtime is compared with.

The exported program is run operation by operation with PyTorch's own kernels. Its call wrapper
(guards, nested-input handling) is taken off, so that it is no slower than the original module. With
``sparse`` linear layers that are mostly zero run as compressed rows where that was measured to be faster.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch

from karui.errors import Unsupported
from karui.graph import csr
from karui.graph.call import tensors_of
from karui.graph.capture import repeat
from karui.graph.half import with_told
from karui.graph.placement import PLAIN, Placement
from karui.graph.program import open_exported, open_program, save_exported
from karui.graph.program import predictor as predictor_of
from karui.runtimes import Ask, Built, Runtime, Source

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.runtimes import Predict

LAYERS = "sparse.json"  # paths of the weights that run as compressed rows, and the sides of their blocks


@final
@dataclass(frozen=True)
class TorchEager(Runtime):
    """sparse: time each mostly zero linear layer at the target's batch, and use compressed rows where faster.
    device, channels_last, autocast: see ``graph.placement``; autocast=bf16 goes with bf16.
    """

    sparse: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    channels_last: bool = False
    autocast: Literal["bf16", "fp16"] | None = None

    WHERE = frozenset({"device"})

    def refuses(self, ask: Ask) -> str | None:
        if ask.form != "torch":
            return "the model was given as ONNX: there is no torch module to run"
        if ask.numerics.rules:
            return "it runs the whole model in one precision"
        if ask.numerics.default.startswith("int"):
            kind = ask.numerics.default[:4].upper()
            return f"PyTorch's eager {kind} kernels belong to a deprecated package"
        if self.sparse and ask.numerics.default != "fp32":
            return "PyTorch multiplies compressed rows in FP32 only"
        if self.sparse and self.place != PLAIN:
            return "compressed rows are measured on the CPU, in PyTorch's own layout"
        return self.place.refuses(ask.numerics.default)

    def casts_in_torch(self, precision: str) -> bool:
        return precision in ("bf16", "fp16") and not self.autocast

    @property
    def place(self) -> Placement:
        return Placement(self.device, self.channels_last, self.autocast)

    def build(self, source: Source, folder: Path) -> Built:
        save_exported(open_exported(source.folder / "model.pt2"), folder / "model.pt2")
        detail = ", ".join([f"PyTorch {torch.__version__} kernels", *self.place.told()])
        facts = {"precision": source.numerics.default, "detail": detail}
        return Built(facts | self.as_rows(source, folder) if self.sparse else with_told(source, facts))

    def as_rows(self, source: Source, folder: Path) -> dict[str, Any]:
        """Choose the layers that run as compressed rows; raises Unsupported where none is faster so."""
        torch.set_num_threads(source.threads)
        rows = source.rows
        inputs = list(tensors_of(repeat(source.calibrate, rows)).values())
        layers = csr.timed(open_program(folder / "model.pt2"), inputs)
        chosen = [layer for layer in layers if layer.worth]
        if not chosen:
            why = "; ".join(map(str, sorted(layers, key=lambda one: -one.ratio)[:3]))
            raise Unsupported(
                f"no layer is faster as a sparse matrix at batch {rows}",
                why=why or "no linear layer is mostly zero",
                fix="a larger batch or more zeros; zeros also make files smaller: fp32@onnxruntime",
            )
        blocks = {layer.path: layer.block for layer in chosen}
        (folder / LAYERS).write_text(json.dumps(blocks), encoding="utf-8")
        told = f"{len(chosen)} layer(s) as compressed rows: {'; '.join(map(str, chosen[:3]))}"
        return {"detail": f"PyTorch {torch.__version__} kernels, {told}", "sparse_layers": len(chosen)}

    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        torch.set_num_threads(threads)
        graph, layers = self.place.open(folder / "model.pt2"), folder / LAYERS
        if layers.is_file():
            graph = csr.put_in(graph, json.loads(layers.read_text(encoding="utf-8")))
        return (
            predictor_of(graph, signature) if self.place == PLAIN else self.place.predictor(graph, signature)
        )
