"""Weights in few bits of decoders from a million to a billion parameters, streamed: memory and time.

    python -m benchmarks.scale > benchmarks/results/scale.md

For each size one process writes a decoder with random weights in a file a block, and another has karui make
4-bit weights of it for ONNX Runtime (``karui.quantize(..., shards=...)``), open the artifact in a third and
verify it. Memory is the resident set of the process that rounds, above what it is after a small model was
done (torch, karui and the converters in memory); files that are mapped count.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.billion import Decoder, gib, status
from safetensors.torch import save_file

import karui
from karui import host

ROOT = Path(__file__).parents[1]
POSITIONS, ROWS, WORDS = 16, 16, 4000
SIZES = ((128, 1), (320, 6), (640, 18), (1280, 8), (1280, 51))  # width, blocks
SMALL = (64, 1)
COLUMNS = (
    "parameters", "width", "blocks", "rounding", "the model's bytes", "file", "peak above the start",
    "share of the model", "seconds", "a million parameters", "agreement with float",
)  # fmt: skip


def sizes_of(width: int, layers: int) -> dict[str, int]:
    hidden = 64 * round(8 * width / 3 / 64)
    return {"width": width, "heads": width // 64, "hidden": hidden, "layers": layers, "vocabulary": WORDS}


def blank(width: int, layers: int) -> Decoder:
    with karui.blank():
        return Decoder(**sizes_of(width, layers)).eval()


def write_shards(width: int, layers: int, folder: Path) -> int:
    """Random weights that keep activations in range, one file a block; gives their bytes."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    draw = torch.Generator().manual_seed(0)
    total = 0
    shapes = {name: tuple(value.shape) for name, value in blank(width, layers).state_dict().items()}
    for name in shapes:
        parts.setdefault(".".join(name.split(".")[:2]), {})[name] = torch.empty(0)
    for stem, names in parts.items():
        part = {name: values(shapes[name], draw) for name in names}
        total += sum(value.nbytes for value in part.values())
        save_file(part, folder / f"{stem}.safetensors")
    return total


def values(shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    return torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=draw) / math.sqrt(shape[1])


def rounded(width: int, layers: int, rounding: str, scratch: Path) -> dict[str, Any]:
    """Streams one decoder; bytes, seconds and what came out."""
    shards = scratch / f"{width}-{layers}"
    shards.mkdir()
    size = write_shards(width, layers, shards)
    tokens = torch.randint(WORDS, (ROWS, POSITIONS), generator=torch.Generator().manual_seed(1))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    start, before = status("VmRSS"), time.perf_counter()
    task = karui.Task(
        blank(width, layers), inputs=tokens[:4], calibrate=tokens, select=tokens, score="agreement"
    )
    recipe = f"int4_weights@onnxruntime:rounding={rounding}"
    (found,) = karui.quantize(task, recipe, scratch / "made", shards=shards)
    return {
        "start": start, "peak": status("VmHWM"), "size": size, "seconds": time.perf_counter() - before,
        "file": found["size_bytes"], "agreement": found["score"]["agreement"],
    }  # fmt: skip


def child(width: int, layers: int, rounding: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        rounded(*SMALL, rounding, Path(first))
        return rounded(width, layers, rounding, Path(second))


def row(width: int, layers: int, rounding: str) -> str:
    command = [sys.executable, "-m", "benchmarks.scale", "--child", str(width), str(layers), rounding]
    done = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout.splitlines()[-1])
    many, peak = found["size"] // 4, found["peak"] - found["start"]
    cells = [
        f"{many:,}", width, layers, rounding, gib(found["size"]), gib(found["file"]), gib(peak),
        f"{peak / found['size']:.2f}", f"{found['seconds']:.0f}", f"{found['seconds'] / many * 1e6:.2f} s",
        f"{found['agreement']:.3f}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, metavar=("WIDTH", "BLOCKS", "ROUNDING"))
    parser.add_argument("--rounding", nargs="+", default=["nearest", "gptq"])
    parser.add_argument("--most", type=int, default=len(SIZES), help="sizes, the smallest first")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(int(args.child[0]), int(args.child[1]), args.child[2])))
        return
    print("# Weights in four bits, streamed from files\n")
    print(f"{host.cpu_name()}, one thread, torch {host.versions()['torch']}, {ROWS} calibration samples of")
    print(f"{POSITIONS} positions; decoders with random weights.\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for rounding in args.rounding:
        for width, layers in SIZES[: args.most]:
            print(row(width, layers, rounding), flush=True)


if __name__ == "__main__":
    main()
