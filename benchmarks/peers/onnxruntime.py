"""ONNX Runtime: the exported model, and its own quantization tools as their documentation calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.peers._given import Given
from benchmarks.peers._user import export_onnx


def fp32(given: Given) -> str:
    export_onnx(given, given.model, given.out / "model.onnx")
    return "fp32@onnxruntime"


def float16(given: Given) -> str:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    export_onnx(given, given.model, given.out / "model.onnx")
    model = convert_float_to_float16(onnx.load(given.out / "model.onnx"), keep_io_types=True)
    onnx.save(model, given.out / "model.onnx")
    return "fp16@onnxruntime"


def dynamic(given: Given) -> str:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(prepared(given), given.out / "model.onnx")
    return "int8_dynamic@onnxruntime"


def static(given: Given) -> str:
    from onnxruntime.quantization import quantize_static

    quantize_static(prepared(given), given.out / "model.onnx", reader(given))
    return "int8@onnxruntime"


def static_per_channel(given: Given) -> str:
    from onnxruntime.quantization import QuantType, quantize_static

    quantize_static(
        prepared(given),
        given.out / "model.onnx",
        reader(given),
        per_channel=True,
        activation_type=QuantType.QUInt8,
    )
    return "int8@onnxruntime"


def prepared(given: Given) -> Any:
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = given.out / "model.onnx"
    export_onnx(given, given.model, path)
    quant_pre_process(path, path, skip_symbolic_shape=True)  # it fails at an Expand of MiniLM
    return onnx.load(path)


def reader(given: Given) -> Any:
    from onnxruntime.quantization import CalibrationDataReader
    from torch.utils.data import DataLoader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[list[Any]] = iter(DataLoader(given.calibrate, batch_size=16))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return dict(zip(given.names, (one.numpy() for one in batch))) if batch else None

    return Reader()
