"""Weights in dynamic INT8, of recurrent layers too: what rounding each of them alone does to the answers.

ONNX Runtime stores the two weights of an LSTM layer with one scale each, and one kernel reads both. A rule
may name either (``lstm.weight_hh_l0=fp32``): the kernel then stays in float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from karui.graph.call import tensors_of
from karui.graph.consumers import tensor_at
from karui.graph.fake_quant import fake_quant
from karui.graph.onnx import batches, path_of, quiet
from karui.graph.program import bare, flat, open_exported
from karui.graph.ranges.places import layer_of, layers, weight_path
from karui.graph.ranges.program import macs_of
from karui.graph.ranges.sensitivity import ratio_db
from karui.graph.ranges.table import S8, U8, Grid, Range
from karui.graph.trace import ROOT, Walk, packet

if TYPE_CHECKING:
    from karui.runtimes import Source

aten = torch.ops.aten
ROWS = 32  # samples on which each weight is heard


def owners(source: Source, exported: Path) -> dict[str, str]:
    """The LSTM node of the ONNX file that reads each recurrent weight, by the weight's path."""
    import onnx

    program = source.folder / "model.pt2"
    if not program.is_file():
        return {}
    nodes = [node.name for node in onnx.load(str(exported), load_external_data=False).graph.node
             if node.op_type == "LSTM"]  # fmt: skip
    kernels = list(kernels_of(bare(open_exported(program).module())))
    if len(nodes) != len(kernels):  # nothing is said of kernels that cannot be told apart
        return {}
    return {path: node for node, paths in zip(nodes, kernels) for path in paths}


def kernels_of(graph: GraphModule) -> Iterator[list[str]]:
    """For each layer of each LSTM, in the program's order, the paths of its weights."""
    for node in graph.graph.nodes:
        if packet(node) is aten.lstm and isinstance(node.args[2], (list, tuple)):
            _, _, weights, _, layers = node.args[:5]
            each = len(weights) // int(layers)
            for start in range(0, len(weights), each):
                part = weights[start : start + each]
                yield [path_at(one) for one in part if one.meta["val"].ndim == 2]


def path_at(node: Node) -> str:
    return str(node.target).removeprefix(ROOT)


def told(source: Source, exported: Path, fallback: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What ``Quantized.covered`` tells, of a model in dynamic INT8, and its ``fallback`` with rules named.

    exported: the model in FP32. fallback: of ``ort_build.executed``: the layers in float.
    """
    program = source.folder / "model.pt2"
    if not program.is_file():
        return {}
    owned = owners(source, exported)
    ruled = {node for path, node in owned.items() if source.numerics.of(path) == "fp32"}
    left = {str(entry["node"]) for entry in fallback}
    left |= {path_of(node) for node in left if node not in owned.values()}
    named = [
        {**entry, "reason": "kept in FP32 by a rule"} if entry["node"] in ruled else dict(entry)
        for entry in fallback
    ]
    return covered(source, owned, left) | {"fallback": named}


def covered(source: Source, owned: Mapping[str, str], left: Collection[str]) -> dict[str, Any]:
    """left: LSTM nodes and paths of layers in float; convolutions always are."""
    program = source.folder / "model.pt2"
    data = source.calibrate or source.probe
    with quiet(), torch.no_grad():
        graph = bare(open_exported(program).module())
        inputs = tuple(tensors_of(next(batches(data, source.signature, ROWS))).values())
        linear = {layer_of(weight_path(node)): weight_path(node)
                  for node in layers(graph) if packet(node) is aten.linear}  # fmt: skip
        macs = macs_of(graph, source.signature, data) | recurrent_macs(graph, inputs)
        stored, plain = weights_in(graph), flat(graph(*inputs))
        heard = {
            name: decibels(plain, graph, stored[linear.get(name, name)], U8 if name in linear else S8, inputs)
            for name in macs
            if name in linear or name in owned
        }
    rules, total = loudest_of_kernel(owned, heard), max(sum(macs.values()), 1.0)
    done = {name for name in macs if owned.get(name, name) not in left}
    each = [
        {
            "layer": name,
            "macs": round(many / total, 4),
            "int8": name in done,
            "module": rules.get(name, name),
            "sqnr_db": heard.get(name),
        }
        for name, many in macs.items()
    ]
    return {"int8_macs": round(sum(macs[name] for name in done) / total, 4), "layers": each}


def recurrent_macs(graph: GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Multiplications a sample of each weight of an LSTM."""
    found: dict[str, float] = {}
    for node, args, _, _ in Walk(graph).steps(*inputs):
        if packet(node) is aten.lstm and isinstance(node.args[2], (list, tuple)):
            steps = args[0].numel() / args[0].shape[-1] / len(inputs[0])
            for one in node.args[2]:
                if isinstance(one, Node) and one.op == "get_attr" and one.meta["val"].ndim == 2:
                    found[path_at(one)] = found.get(path_at(one), 0.0) + steps * one.meta["val"].numel()
    return found


def weights_in(graph: GraphModule) -> dict[str, Tensor]:
    return {
        path_at(node): tensor_at(graph, str(node.target))
        for node in graph.graph.nodes
        if node.op == "get_attr"
    }


def decibels(
    plain: Sequence[Tensor], graph: GraphModule, weight: Tensor, grid: Grid, inputs: tuple[Tensor, ...]
) -> float:
    """Signal to the noise of rounding one weight as ONNX Runtime stores it: with one scale."""
    before = weight.detach().clone()
    scale, zero, axis = Range(before.amin(), before.amax()).rounding(grid)
    weight.data.copy_(fake_quant(before, scale, zero, grid.low, grid.high, axis))
    noisy = flat(graph(*inputs))
    weight.data.copy_(before)
    return round(ratio_db(plain, noisy), 2)


def loudest_of_kernel(owned: Mapping[str, str], heard: Mapping[str, float]) -> dict[str, str]:
    """For each recurrent weight, the one of its kernel that disturbs most: what a rule names."""
    found: dict[str, str] = {}
    for path, node in owned.items():
        mine = [other for other, its in owned.items() if its == node and other in heard]
        found[path] = min(mine, key=lambda other: heard[other], default=path)
    return found
