"""The goal of a pruning step on the way to its end: how far it goes in each of several rounds.

Gradual: Zhu & Gupta 2017, arXiv:1710.01878 (cubic); the same share of what is left in each round: Han et al.
2015, arXiv:1506.02626 (geometric).
"""

from __future__ import annotations

from typing import Any, Literal

from karui.errors import UsageError
from karui.recipe import Named

Schedule = Literal["linear", "cubic", "geometric"]
GOES, STAYS = ("sparsity", "ratio"), ("macs", "parameters")  # options: shares that go, and that stay


def goal_of(step: Named) -> tuple[str, float]:
    """The option that says how far a step goes, and the share of the whole that stays in the end.

    Raises UsageError for a step that has none, or several.
    """
    options: dict[str, Any] = dict(step.options)
    found = [name for name in (*GOES, *STAYS) if name in options]
    if len(found) != 1:
        fix = 'name one: prune="prune_weights:sparsity=0.9" or prune="prune_channels:macs=0.5"'
        raise UsageError(f"{step} has no goal to go towards in rounds", fix=fix)
    share = float(options[found[0]])
    if not 0 < share < 1:
        raise UsageError(f"{found[0]} must lie between 0 and 1, got {share:g}")
    return found[0], share if found[0] in STAYS else 1 - share


def stays_after(schedule: Schedule, end: float, done: float) -> float:
    """The share of the whole that is left when ``done`` of the rounds are over."""
    if schedule == "geometric":
        return float(end**done)
    return 1 - (1 - end) * (done if schedule == "linear" else 1 - (1 - done) ** 3)


def towards(step: Named, before: float, after: float) -> Named:
    """The step that goes from ``before`` to ``after``, shares of the whole that stay.

    Zeros are counted in the whole; channels, MACs and parameters in what the round before left.
    """
    name, _ = goal_of(step)
    wanted = {"sparsity": 1 - after, "ratio": 1 - after / before}.get(name, after / before)
    return Named(step.name, tuple((key, wanted if key == name else value) for key, value in step.options))
