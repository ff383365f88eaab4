"""Narrower networks for the runtimes of a target, mild ones first.

What they win, and whether the budget allows it, is measured. Vector kernels want widths in multiples: with
any width, ONNX Runtime was measured slower than the wide network.
"""

from __future__ import annotations

from collections.abc import Iterable

from karui.budget import Budget

PRECISIONS = ("fp32", "int8")
TRAINING_S, TRAINING_SHARE = 1200.0, 0.2  # most that one training may take; of the time of the whole run


def calibrated(runtimes: Iterable[str]) -> list[str]:
    """With no training."""
    return over("prune_channels:macs={share},multiple_of=8", ("0.75", "0.5", "0.25"), runtimes)


def trained(runtimes: Iterable[str], budget: Budget) -> list[str]:
    """The same, and narrower still, with recovery."""
    steps = f"prune_channels:macs={{share}},multiple_of=8 + {recovery(budget)}"
    return over(steps, ("0.5", "0.25", "0.125"), runtimes)


def recovery(budget: Budget) -> str:
    """A training that takes a share of the whole run's time at most."""
    most_s = TRAINING_S if budget.time_s is None else min(TRAINING_S, TRAINING_SHARE * budget.time_s)
    return f"finetune:steps=600,most_s={most_s:g}"


def zeros(runtimes: Iterable[str], budget: Budget) -> list[str]:
    """Where bytes count, for runtimes whose files pack zeros: none has a kernel that skips them."""
    return over("prune_weights:sparsity={share}", ("0.8", "0.9"), runtimes) if small(budget) else []


def small(budget: Budget) -> bool:
    return bool(budget.max_size_bytes) or budget.objective == "size"


def over(steps: str, shares: Iterable[str], runtimes: Iterable[str]) -> list[str]:
    runtimes = tuple(runtimes)
    return [
        f"{steps.format(share=share)} + {precision}@{runtime}"
        for share in shares
        for precision in PRECISIONS
        for runtime in runtimes
    ]
