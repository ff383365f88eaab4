"""OpenVINO alone: the model in the arithmetic that it chooses itself, and told to compute in FP32."""

from __future__ import annotations

from benchmarks.peers._given import Given


def as_it_comes(given: Given) -> str:
    import openvino as ov

    model = ov.convert_model(given.model, example_input=given.example)
    ov.save_model(model, given.out / "model.xml")
    return "fp32@openvino"


def in_fp32(given: Given) -> str:
    as_it_comes(given)
    (given.out / "openvino.json").write_text('{"precision_hint": "f32"}')  # ov.compile_model's option
    return "fp32@openvino"
