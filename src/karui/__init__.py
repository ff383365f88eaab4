"""karui (軽い, "light"): make a trained PyTorch model smaller and faster where it will run.

    import karui
    result = karui.optimize(karui.Task(model, calibrate=train, select=validation), max_drop=0.5)
    print(result.table())

Names are loaded when first used: importing karui imports neither torch nor any runtime.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from karui.api import (
        apply,
        bench,
        distill,
        finetune,
        load,
        optimize,
        prune,
        quantize,
        size_bytes,
        sparsity,
    )
    from karui.budget import Budget
    from karui.errors import KaruiError
    from karui.graph.pruned import load_pruned
    from karui.graph.quantize_aware import quantize_aware
    from karui.graph.shards import blank
    from karui.numerics import Numerics
    from karui.optimize.result import Result
    from karui.recipe import Recipe
    from karui.score import Score
    from karui.target import Target
    from karui.task import Task

HOMES = {
    "Budget": "karui.budget",
    "KaruiError": "karui.errors",
    "Numerics": "karui.numerics",
    "Recipe": "karui.recipe",
    "Result": "karui.optimize.result",
    "Score": "karui.score",
    "Target": "karui.target",
    "Task": "karui.task",
    "apply": "karui.api",
    "bench": "karui.api",
    "blank": "karui.graph.shards",
    "distill": "karui.api",
    "finetune": "karui.api",
    "load": "karui.api",
    "load_pruned": "karui.graph.pruned",
    "optimize": "karui.api",
    "prune": "karui.api",
    "quantize": "karui.api",
    "quantize_aware": "karui.graph.quantize_aware",
    "size_bytes": "karui.api",
    "sparsity": "karui.api",
}

__all__ = [
    "Budget", "KaruiError", "Numerics", "Recipe", "Result", "Score", "Target", "Task",
    "apply", "bench", "blank", "distill", "finetune", "load", "load_pruned", "optimize", "prune", "quantize",
    "quantize_aware", "size_bytes", "sparsity",
]  # fmt: skip


@final
class Karui(ModuleType):
    """Two rooms have the name of a function: importing ``karui.bench`` leaves ``karui.bench()`` in place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in HOMES or not isinstance(value, ModuleType):
            ModuleType.__setattr__(self, name, value)


sys.modules[__name__].__class__ = Karui


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'karui' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(HOMES)
