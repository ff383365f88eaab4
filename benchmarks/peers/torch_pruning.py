"""Torch-Pruning: channels removed by magnitude, a training loop of the user's, then ONNX Runtime.

Epochs and learning rate are those of ``_given.TRAINING``.
"""

from __future__ import annotations

from benchmarks.peers._given import Given
from benchmarks.peers._user import export_onnx, fine_tune

BESIDE = ("torch-pruning==1.6.1",)  # with no dependencies: it takes the torch that is there


def a_quarter(given: Given) -> str:
    return pruned(given, 0.25)


def half(given: Given) -> str:
    return pruned(given, 0.5)


def three_quarters(given: Given) -> str:
    return pruned(given, 0.75)


def pruned(given: Given, ratio: float) -> str:
    import torch
    import torch_pruning as tp

    model = given.model.requires_grad_(True)
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        model,
        given.example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[last],
    )
    pruner.step()
    fine_tune(given, model)
    export_onnx(given, model, given.out / "model.onnx")
    return "fp32@onnxruntime"
