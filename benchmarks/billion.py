"""A decoder of a billion parameters pruned in the mode that consumes it: how much memory that takes.

``python -m benchmarks.billion`` prints the table; one child process builds the model with random weights and
prunes a quarter of its hidden units and head widths by norms. Memory is the child's resident set, from the
kernel, above what the same process takes before the model is built (torch, karui and one small model pruned
already, so that nothing is left to be imported).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import karui
from karui import host

ROOT = Path(__file__).parents[1]
HOW = "prune_channels:ratio=0.25,importance=ln,compensate=false"
SIZES = {"width": 1792, "heads": 14, "hidden": 4928, "layers": 24, "vocabulary": 32000}
SMALL = {"width": 64, "heads": 4, "hidden": 128, "layers": 2, "vocabulary": 100}
POSITIONS, ROWS = 8, 4
GIB = 1 << 30


class Block(nn.Module):
    """Causal attention and a gated feed-forward layer, each behind an RMS norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.before_attention, self.before_hidden = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.before_attention(x)
        q, k, v = (
            part(given).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        given = self.before_hidden(x)
        return x + self.down(functional.silu(self.gate(given)) * self.up(given))


class Decoder(nn.Module):
    """Embedding, blocks, norm; the embedding's weight gives the scores as well."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.norm(x), self.embed.weight)


def pruned(sizes: dict[str, int]) -> dict[str, Any]:
    """Builds, prunes, and says what that took, in bytes and seconds."""
    torch.manual_seed(0)
    start = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    model = Decoder(**sizes).eval()
    size, built, before = karui.size_bytes(model), status("VmHWM"), time.perf_counter()
    tokens = torch.randint(sizes["vocabulary"], (ROWS, POSITIONS))
    found = karui.prune(karui.Task(model, inputs=tokens), HOW, consume=True)
    seconds, peak = time.perf_counter() - before, status("VmHWM")
    return {
        "start": start, "size": size, "built": built - start, "peak": peak - start,
        "after": status("VmRSS") - start, "size_after": karui.size_bytes(found.model), "seconds": seconds,
        "parameters": found.facts["parameters"], "macs": found.facts["macs"], "form": found.facts["form"],
        "cut_error": found.facts["cut_error"], "parts": len(found.manifest.parts),
        "widths": [model.layers[0].q.out_features, model.layers[0].up.out_features],
        "consumed": found.model is model,
    }  # fmt: skip


def status(key: str) -> int:
    """Of this process, in bytes: VmRSS now, VmHWM at most so far."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def table(found: dict[str, Any]) -> str:
    (before, after), (macs, fewer) = found["parameters"], found["macs"]
    size = found["size"]
    rows = [
        ("parameters", f"{before:,} → {after:,}"),
        ("multiply-accumulates a sample", f"{macs / 1e9:.2f} G → {fewer / 1e9:.2f} G"),
        ("blocks cut", f"{found['parts']} of {SIZES['layers']}, form {found['form']}"),
        ("widths of a block", "heads {} → {}, hidden {} → {}".format(
            SIZES["width"], found["widths"][0], SIZES["hidden"], found["widths"][1])),
        ("largest difference of cut and masked blocks", f"{found['cut_error']:.1e}"),
        ("the model's own bytes", f"{gib(size)} → {gib(found['size_after'])}"),
        ("process before the model", gib(found["start"])),
        ("peak above that while building", f"{gib(found['built'])}, {found['built'] / size:.3f}x"),
        ("**peak above that in all**", f"**{gib(found['peak'])}, {found['peak'] / size:.3f}x the model**"),
        ("afterwards", gib(found["after"])),
        ("time", f"{found['seconds']:.0f} s on one thread"),
    ]  # fmt: skip
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"# Pruning a billion parameters in place\n\n`{HOW}` with `consume=True`\non a decoder with random "
        f"weights: {SIZES['layers']} blocks, width {SIZES['width']}, {SIZES['heads']} heads, hidden "
        f"{SIZES['hidden']}, float32.\n{host.cpu_name()}, torch {host.versions()['torch']}. Made by "
        f"`python -m benchmarks.billion`.\n\n| | |\n|---|---|\n{lines}"
    )


def gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", action="store_true", help="be the process that is measured")
    if parser.parse_args().child:
        torch.set_num_threads(1)
        pruned(SMALL)
        print(json.dumps(pruned(SIZES)))
        return
    command = [sys.executable, "-m", "benchmarks.billion", "--child"]
    done = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    print(table(json.loads(done.stdout.splitlines()[-1])))


if __name__ == "__main__":
    main()
