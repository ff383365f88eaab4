"""Narrower networks for the runtimes of a target, mild ones first.

What they win, and whether the budget allows it, is measured. Vector kernels want widths in multiples: with
any width, ONNX Runtime was measured slower than the wide network.
"""

from __future__ import annotations

from collections.abc import Iterable

from karui.budget import Budget

PRECISIONS = ("fp32", "int8")
TRAINING_S, TRAINING_SHARE = 1200.0, 0.3  # most that one training may take; of the time of the whole run
GENTLE = "finetune:steps=600"  # suits trained networks of any kind
THOROUGH = "finetune:epochs={epochs},batch=128,optimizer=adamw,lr=0.01,weight_decay=0.01,schedule=one_cycle"
LONG = {"10": ("0.25", "0.125", "0.0625"), "4": ("0.35", "0.25", "0.125")}  # epochs: shares of the MACs


def calibrated(runtimes: Iterable[str]) -> list[str]:
    """With no training."""
    return over("prune_channels:macs={share},multiple_of=8", ("0.75", "0.5", "0.25"), runtimes)


def trained(runtimes: Iterable[str], budget: Budget) -> list[str]:
    """The same, and narrower still, with recovery; with long ones where it is known how long the run may
    take. What goes farther than a share that lost too much is left out.
    """
    mild, *harsh = (retrained(recovery(budget), [share], runtimes) for share in ("0.5", "0.25", "0.125"))
    long = [
        retrained(recovery(budget, THOROUGH.format(epochs=epochs)), shares, runtimes)
        for epochs, shares in LONG.items()
        if budget.time_s is not None
    ]
    return [recipe for part in (mild, *long, *harsh) for recipe in part]


def retrained(training: str, shares: Iterable[str], runtimes: Iterable[str]) -> list[str]:
    return over(f"prune_channels:macs={{share}},multiple_of=8 + {training}", shares, runtimes)


def recovery(budget: Budget, training: str = GENTLE) -> str:
    """A training that takes a share of the whole run's time at most."""
    most_s = TRAINING_S if budget.time_s is None else min(TRAINING_S, TRAINING_SHARE * budget.time_s)
    return f"{training},most_s={most_s:g}"


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
