"""Olive: workflows of passes for ONNX Runtime, without a search (which needs an evaluator and more lines)."""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks.peers._given import Given
from benchmarks.peers._user import export_onnx

ALONE = (
    "torch==2.13.0",
    "olive-ai==0.13.0",
    "onnxruntime==1.31.1",
    "onnx==1.23.2",
    "onnxscript==0.7.2",
    "requests",
    "pydantic==2.12.5",
    "pillow",
)


def dynamic(given: Given) -> str:
    run_passes(given, {"quantize": {"type": "OnnxDynamicQuantization"}})
    return "int8_dynamic@onnxruntime"


def static(given: Given) -> str:
    from olive.data.component.dataset import BaseDataset
    from olive.data.registry import Registry

    @Registry.register_dataset("rows")
    def rows(data_dir: str = "", **options: Any) -> BaseDataset:
        return BaseDataset([(dict(zip(given.names, row)), 0) for row in given.calibrate])

    data = {"name": "rows", "load_dataset_config": {"type": "rows"}}
    passes = {"quantize": {"type": "OnnxStaticQuantization", "data_config": "rows"}}
    run_passes(given, passes, data)
    return "int8@onnxruntime"


def run_passes(given: Given, passes: dict[str, Any], *data: dict[str, Any]) -> None:
    from olive import run

    export_onnx(given, given.model, given.out.parent / "exported.onnx")
    found = run(
        {
            "input_model": {"type": "OnnxModel", "model_path": str(given.out.parent / "exported.onnx")},
            "data_configs": list(data),
            "passes": passes,
            "output_dir": str(given.out.parent / "olive"),
            "cache_dir": str(given.out.parent / "cache"),
        }
    )
    shutil.copy(found.get_best_candidate().model_path, given.out / "model.onnx")
