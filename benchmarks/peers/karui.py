"""karui by its defaults; taking drops as they are measured, which is what the others' users do; and with
recipes that train as long as Torch-Pruning's user does here.

Two artifacts of a run: the fastest and the smallest that it says to be inside the budget.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers._given import MAX_DROP, Given

SECONDS = 1200


def defaults(given: Given) -> dict[str, Path]:
    import karui

    budget = karui.Budget(max_drop=MAX_DROP, time_s=SECONDS)
    return _best_of(karui.optimize(asked(given), "cpu", budget=budget, out=given.out / "run"))


def as_measured(given: Given) -> dict[str, Path]:
    import karui

    budget = karui.Budget(max_drop=MAX_DROP, time_s=SECONDS, confidence=0.5)
    return _best_of(karui.optimize(asked(given), "cpu", budget=budget, out=given.out / "run"))


def trained(given: Given) -> dict[str, Path]:
    import karui
    from karui.optimize import Settings

    training = (
        f"finetune:epochs={given.epochs},batch=128,optimizer=adamw,"
        f"lr={given.rate},weight_decay=1e-2,schedule=one_cycle"
    )
    steps = (f"prune_channels:macs={share},multiple_of=8 + {training}" for share in (0.25, 0.125))
    wheres = ("fp32@onnxruntime", "int8@onnxruntime", "int8@openvino")
    recipes = tuple(f"{step} + {where}" for step in steps for where in wheres)
    budget = karui.Budget(max_drop=MAX_DROP, time_s=SECONDS)
    settings = Settings(recipes=recipes)
    return _best_of(
        karui.optimize(asked(given), "cpu", budget=budget, out=given.out / "run", settings=settings)
    )


def asked(given: Given) -> Any:
    from karui import Task

    return Task(
        given.model,
        inputs=given.task.inputs,
        train=given.task.train,
        calibrate=given.task.calibrate,
        select=given.task.select,
        confirm=given.task.confirm,
    )


def _best_of(result: Any) -> dict[str, Path]:
    """Raises ValueError where nothing was gained."""
    if result.best is None:
        raise ValueError("nothing was faster inside the budget")
    held = [trial for trial in result.facts["trials"] if trial["status"] in ("kept", "best")]
    smallest = min(held, key=lambda trial: trial["size_bytes"])
    found = {"best": result.best.folder, "smallest": result.folder / smallest["artifact"]}
    return found if smallest["id"] != result.facts["best"] else {"best": result.best.folder}
