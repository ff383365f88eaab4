"""NNCF: post-training quantization for OpenVINO, and the same under control of the accuracy."""

from __future__ import annotations

from typing import Any

from benchmarks.peers._given import MAX_DROP, Given


def quantize(given: Given) -> str:
    import nncf
    import openvino as ov
    from torch.utils.data import DataLoader

    model = ov.convert_model(given.model, example_input=given.example)
    loader = DataLoader(given.calibrate, batch_size=1)
    dataset = nncf.Dataset(loader, lambda batch: [one.numpy() for one in batch])
    ov.save_model(nncf.quantize(model, dataset, subset_size=len(loader)), given.out / "model.xml")
    return "int8@openvino"


def transformer(given: Given) -> str:
    import nncf
    import openvino as ov
    from torch.utils.data import DataLoader

    model = ov.convert_model(given.model, example_input=given.example)
    loader = DataLoader(given.calibrate, batch_size=1)
    dataset = nncf.Dataset(loader, lambda batch: [one.numpy() for one in batch])
    found = nncf.quantize(model, dataset, subset_size=len(loader), model_type=nncf.ModelType.TRANSFORMER)
    ov.save_model(found, given.out / "model.xml")
    return "int8@openvino"


def with_accuracy_control(given: Given) -> str:
    import nncf
    import openvino as ov
    from torch.utils.data import DataLoader

    def accuracy(compiled: Any, rows: Any) -> float:
        found = [compiled(inputs)[0].argmax() == label for *inputs, label in rows]
        return float(sum(found)) / len(found)

    def inputs_of(batch: list[Any]) -> list[Any]:
        return [one.numpy() for one in batch[: len(given.names)]]

    model = ov.convert_model(given.model, example_input=given.example)
    found = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(DataLoader(given.calibrate, batch_size=1), inputs_of),
        nncf.Dataset(
            DataLoader(given.select, batch_size=1), lambda batch: [*inputs_of(batch), int(batch[-1])]
        ),
        validation_fn=accuracy,
        max_drop=MAX_DROP / 100,
    )
    ov.save_model(found, given.out / "model.xml")
    return "int8@openvino"
