"""What lies beside a ``model.onnx`` for TensorRT: how to build an engine of it, and how to check that engine.

Flags: ``trtexec --help`` of TensorRT 11; those that it or 10 removed (``--workspace``, ``--fp16``,
``--int8``, ``--best``) are nowhere here, for the precisions stand in the file.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from karui.artifact import ON_GPU
from karui.graph.tensorrt import verify_on_gpu
from karui.graph.tensorrt.verify_on_gpu import MODEL, WORKSPACE_BYTES

if TYPE_CHECKING:
    from karui.artifact import Signature
    from karui.data import Array, Arrays

SCRIPT, SETTINGS, CHECK, ROWS, PLAN = ON_GPU
LIMITS = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.2, "int8": 0.1}  # of the scale, from the reference
HEAD = """#!/usr/bin/env bash
# Builds model.plan from model.onnx where it will run: a plan fits one GPU and one version of TensorRT.
# For TensorRT 11. With TensorRT 10: ./build_engine.sh --stronglyTyped
# The file says every precision; without --noTF32 products of FP32 would be computed with 10 bits.
set -euo pipefail
cd "$(dirname "$0")"
"""


def write_files(folder: Path, signature: Signature, settings: Mapping[str, Any]) -> None:
    """settings: ``batch``, ``largest`` (rows of a call), ``sparse``, ``precision``."""
    full = {**settings, "limit": LIMITS[settings["precision"]]}
    (folder / SETTINGS).write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
    (folder / SCRIPT).write_text(script(signature, settings), encoding="utf-8")
    (folder / SCRIPT).chmod(0o755)
    shutil.copyfile(Path(verify_on_gpu.__file__), folder / CHECK)


def script(signature: Signature, settings: Mapping[str, Any]) -> str:
    flags = [
        f"--onnx={MODEL}",
        f"--saveEngine={PLAN}",
        f"--memPoolSize=workspace:{WORKSPACE_BYTES >> 20}",  # MiB
        "--noTF32",
        "--skipInference",
        *(["--sparsity=enable"] if settings["sparse"] else []),
    ]
    if signature.dynamic_batch:
        rows = {"min": 1, "opt": settings["batch"], "max": settings["largest"]}
        flags += [f"--{which}Shapes={shapes(signature, count)}" for which, count in rows.items()]
    return f'{HEAD}exec trtexec {shlex.join(flags)} "$@"\n'


def shapes(signature: Signature, rows: int) -> str:
    sizes = [[rows if size is None else size for size in port.shape] for port in signature.inputs]
    return ",".join(
        f"{port.name}:{'x'.join(map(str, size))}" for port, size in zip(signature.inputs, sizes, strict=True)
    )


def write_rows(
    folder: Path,
    signature: Signature,
    inputs: Arrays,
    reference: Sequence[Array],
    original: Sequence[Array],
) -> None:
    """Inputs and answers for the check, in an archive without pickles; all names are those of the file."""
    stored = {f"input/{name}": array for name, array in inputs.items()}
    for port, mine, theirs in zip(signature.outputs, reference, original, strict=True):
        stored |= {f"reference/{port.name}": mine, f"original/{port.name}": theirs}
    np.savez(folder / ROWS, allow_pickle=False, **stored)
