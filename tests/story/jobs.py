"""Small networks with their data, quick settings, and what must stay as it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

import karui
from karui.bench.rounds import Pace
from karui.optimize import Settings
from karui.process import Limits

SHORT = Pace(least=4, most=6, seconds=0.3)
FP32 = ("fp32@torch_eager", "fp32@onnxruntime")


def quick(*recipes: str, limits: Limits = Limits(seconds=120.0)) -> Settings:
    """Settings of a run that measures as little as can be."""
    return Settings(recipes=recipes or FP32, pace=SHORT, final=SHORT, limits=limits, command="test")


def mlp(features: int = 8, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, classes)).eval()


def labelled(model: nn.Module, *shape: int, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs of ``shape`` per sample, and labels with which ``model`` is always right."""
    inputs = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return inputs, model(inputs).argmax(1)


def mlp_task(name: str = "mlp") -> karui.Task:
    model = mlp()
    return karui.Task(model=model, select=labelled(model, 8), name=name)


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def portrait(model: nn.Module) -> dict[str, object]:
    """All of a module that a tool might disturb: weights bit by bit, modes, hooks, attributes."""
    state = {name: (t.dtype, t.cpu().numpy().tobytes()) for name, t in model.state_dict().items()}
    parts = dict(model.named_modules(remove_duplicate=False))
    return {
        "state": state,
        "ties": [(name, t.data_ptr()) for name, t in model.named_parameters(remove_duplicate=False)],
        "grad": [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        "training": {name: part.training for name, part in parts.items()},
        "classes": {name: type(part) for name, part in parts.items()},
        "hooks": {name: (list(p._forward_hooks), list(p._forward_pre_hooks)) for name, p in parts.items()},
        "attributes": {name: sorted(vars(part)) for name, part in parts.items()},
    }


TASK_FILE = '''
"""A job as a user would write it."""

import torch
from torch import nn

import karui


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)).eval()


def data():
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, net()(x).argmax(1)


def task():
    print("a print of the user's own")
    return karui.Task(model=net, select=data(), name="story")
'''
