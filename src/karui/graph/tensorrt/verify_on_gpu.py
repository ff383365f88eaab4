"""Run this on a machine with an NVIDIA GPU: python verify_on_gpu.py [tensorrt | onnxruntime-tensorrt |
onnxruntime-cuda].

It needs numpy and either tensorrt with torch (for memory on the GPU) or onnxruntime-gpu. It compares the
answers of the GPU with those that were computed from this file elsewhere and with the original model's, and
times it. Nothing falls back to a CPU: without the GPU it stops with code 2; answers too far away give 1.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
MODEL, SETTINGS, ROWS = "model.onnx", "engine.json", "verify_on_gpu.npz"
WORKSPACE_BYTES = 1 << 30
PROVIDERS = {"onnxruntime-tensorrt": "TensorrtExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}


def main(how: str) -> int:
    settings = json.loads((HERE / SETTINGS).read_text(encoding="utf-8"))
    stored = np.load(HERE / ROWS, allow_pickle=False)
    inputs = {key[len("input/") :]: stored[key] for key in stored.files if key.startswith("input/")}
    runner = with_onnxruntime(PROVIDERS[how]) if how in PROVIDERS else with_tensorrt(settings)
    answers, seconds = runner(inputs)
    far = [too_far(stored, name, answer, settings["limit"]) for name, answer in answers.items()]
    rows = len(next(iter(inputs.values())))
    print(f"{how}: {1000 * statistics.median(seconds):.4f} ms a call of {rows} rows, {settings['precision']}")
    return int(any(far))


def too_far(stored: Any, name: str, answer: np.ndarray[Any, Any], limit: float) -> bool:
    """Print how far an answer is; limit: of the largest difference from the reference, over its scale."""
    gaps = {}
    for against in ("reference", "original"):
        wanted = stored[f"{against}/{name}"].astype(np.float64)
        scale = max(float(np.abs(wanted).max()), 1e-12)
        gaps[against] = float(np.abs(answer - wanted).max()) / scale
    wrong = not gaps["reference"] <= limit
    told = ", ".join(f"{gap:.2g} of the scale from the {against}" for against, gap in gaps.items())
    print(f"{name}: {told}{' TOO FAR' if wrong else ''} (limit {limit:g} from the reference)")
    return wrong


def with_onnxruntime(provider: str) -> Any:
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        stop(f"this onnxruntime has no {provider}: pip install onnxruntime-gpu")
    session = ort.InferenceSession(str(HERE / MODEL), providers=[provider])
    if session.get_providers()[0] != provider:
        stop(f"{provider} did not start: onnxruntime fell back to {session.get_providers()[0]}")
    names = [node.name for node in session.get_outputs()]

    def run(inputs: dict[str, Any]) -> tuple[dict[str, Any], list[float]]:
        answers = dict(zip(names, session.run(names, inputs)))
        seconds = []
        for _ in range(100):
            start = time.perf_counter()
            session.run(names, inputs)
            seconds.append(time.perf_counter() - start)
        return answers, seconds

    return run


def with_tensorrt(settings: dict[str, Any]) -> Any:
    import torch

    if not torch.cuda.is_available():
        stop("torch sees no GPU")
    plan = build(HERE / MODEL, settings["batch"], settings["largest"], sparse=settings["sparse"])
    engine = Engine(plan)
    return lambda inputs: (engine.run(inputs), engine.time(inputs, 100))


def stop(reason: str) -> None:
    print(reason, file=sys.stderr)
    sys.exit(2)


def build(model: Path, batch: int, largest: int, *, sparse: bool) -> bytes:
    """An engine for 1 to ``largest`` rows a call, planned for ``batch``; of TensorRT 10 or 11."""
    import tensorrt as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(model)):
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: FP32 would have 10 bits in products
    if sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    given = [network.get_input(i) for i in range(network.num_inputs)]
    if any(-1 in tuple(tensor.shape) for tensor in given):
        for tensor in given:
            rest = tuple(tensor.shape)[1:]
            profile.set_shape(tensor.name, (1, *rest), (batch, *rest), (largest, *rest))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT built no engine; its log says why")
    return bytes(plan)


class Engine:
    """A plan on the GPU: arrays by name go there and back at each call."""

    torch: Any
    trt: Any

    def __init__(self, plan: bytes) -> None:
        import tensorrt as trt
        import torch

        self.torch, self.trt = torch, trt
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # outlives what it opens
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise RuntimeError("the engine was built by another TensorRT or for another GPU: build it again")
        self.context = self.engine.create_execution_context()
        self.stream = self.torch.cuda.Stream()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]

    def run(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Answers by name; with the way to the GPU and back, and waiting for it."""
        with self.torch.cuda.stream(self.stream):
            held = self.bind(arrays)
            self.launch()
            answers = {name: held[name].cpu() for name in self.outputs}
        self.stream.synchronize()
        return {name: answer.numpy() for name, answer in answers.items()}

    def time(self, arrays: dict[str, Any], calls: int) -> list[float]:
        """Seconds of each call by events on the GPU, with the inputs there already."""
        event = self.torch.cuda.Event
        spans = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(calls)]
        with self.torch.cuda.stream(self.stream):
            held = self.bind(arrays)
            self.launch()
            for start, end in spans:
                start.record(self.stream)
                self.launch()
                end.record(self.stream)
        self.stream.synchronize()
        del held
        return [start.elapsed_time(end) / 1000 for start, end in spans]

    def bind(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Tensors on the GPU by name; they must live until the call is over."""
        held = {}
        for name in self.inputs:
            held[name] = self.torch.from_numpy(np.ascontiguousarray(arrays[name])).to("cuda")
            if not self.context.set_input_shape(name, tuple(held[name].shape)):
                raise RuntimeError(f"{name}: the engine was not built for {len(arrays[name])} rows")
        for name in self.outputs:
            kind = self.torch.from_numpy(
                np.empty(0, self.trt.nptype(self.engine.get_tensor_dtype(name)))
            ).dtype
            held[name] = self.torch.empty(
                tuple(self.context.get_tensor_shape(name)), dtype=kind, device="cuda"
            )
        for name, tensor in held.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        return held

    def launch(self) -> None:
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine; its log says why")


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "tensorrt"
    if chosen not in ("tensorrt", *PROVIDERS):
        stop(f"one of: tensorrt, {', '.join(PROVIDERS)}")
    sys.exit(main(chosen))
