"""After quantization-aware training: the trained model beside what each runtime makes of it.

    python -m benchmarks.qat_parity > benchmarks/results/qat_parity.md

Agreement and largest difference are against the fake-quant reference on 2,000 test samples; a step of the
output (LSB) is a 255th of its range there. Needs ``make data`` and the checkpoints of the networks.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from benchmarks.quantize_aware import Case, case_of, made

from karui.artifact import Signature
from karui.graph.capture import capture
from karui.graph.inspect import private_copy
from karui.graph.quantize_aware import QuantAware, Rounding
from karui.graph.ranges.table import save_table
from karui.numerics import Numerics
from karui.runtimes import Runtime, Source
from karui.runtimes.aot_inductor import AotInductor
from karui.runtimes.onnxruntime import OnnxRuntime
from karui.runtimes.openvino import OpenVino
from karui.techniques.quantize_aware import QuantizeAware

NETWORKS = {"mnist": "CNN", "fashion": "residual CNN", "mobile": "depthwise CNN", "encoder": "transformer"}
RUNTIMES: dict[str, type[Runtime]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "aot_inductor": AotInductor,
}
STEPS, TEST, PART = 30, 2000, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES))
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("# Quantization-aware training: one model, every runtime\n")
    print(f"{args.steps} steps of `quantize_aware` of 64 samples, {TEST:,} test samples.\n")
    print(
        "| network | runtime | agreement with fake-quant | largest difference (LSB) | with the model trained "
        "| MACs in INT8 |\n|---|---|--:|--:|--:|--:|"
    )
    for name in args.networks:
        case = case_of(name)
        aware = trained(case, args.steps)
        for runtime in args.runtimes:
            print(f"| {name} ({NETWORKS[name]}) | {runtime} | {row(case, aware, runtime)} |", flush=True)


def trained(case: Case, steps: int) -> QuantAware:
    aware = made(case, case.model, Rounding())
    QuantizeAware(steps=steps).train(aware, private_copy(case.model), case.given)
    return aware.eval()


def row(case: Case, aware: QuantAware, name: str) -> str:
    images = case.images[:TEST].numpy()
    (port,) = case.given.inputs
    with tempfile.TemporaryDirectory() as scratch:
        home, folder = Path(scratch) / "captured", Path(scratch) / "built"
        folder.mkdir()
        signature = capture(private_copy(aware.model), case.given.signature, case.given.inputs, home)
        save_table(aware.ranges(), home)
        source = Source(home, signature, Numerics("int8"), case.given.calibrate, {port: images})
        runtime = RUNTIMES[name]()
        built = runtime.build(source, folder)
        answers = answered(runtime, folder, signature, port, images)
    assert built.reference is not None
    reference = np.asarray(built.reference[0])
    with torch.no_grad():
        here = np.concatenate([aware(part).numpy() for part in case.images[:TEST].split(PART)])
    step = (reference.max() - reference.min()) / 255
    cells = [
        f"{same(answers, reference):.2%}", f"{np.abs(answers - reference).max() / step:.2f}",
        f"{same(answers, here):.2%}", f"{built.executed['int8_macs']:.1%}",
    ]  # fmt: skip
    return " | ".join(cells)


def answered(
    runtime: Runtime, folder: Path, signature: Signature, port: str, images: np.ndarray
) -> np.ndarray:
    predict = runtime.load(folder, signature, 1)
    return np.concatenate(
        [np.array(predict({port: images[i : i + PART]})[0]) for i in range(0, len(images), PART)]
    )


def same(mine: np.ndarray, theirs: np.ndarray) -> float:
    return float((mine.argmax(1) == theirs.argmax(1)).mean())


if __name__ == "__main__":
    main()
