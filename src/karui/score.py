"""Scores: how good answers are, per sample where that is possible.

All work on numpy arrays with samples along the first axis; ``outputs`` has the structure of the
model's own answer. ``top1`` and ``top5`` look at the entry ``logits`` of a dict, else at the first
output, of shape (n, classes, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karui.blame import users_code
from karui.errors import UsageError
from karui.structure import flatten

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Score:
    """A way to judge answers.

    function: (outputs, targets) -> one number per sample, shape (n,), or one for the whole set.
    share: True when it is a share of right answers, so that drops are counted in points.
    reference: True when the original model's own answers stand in for labels.
    """

    function: Callable[[Any, Any], Any]
    name: str = ""
    higher_is_better: bool = True
    share: bool = False
    reference: bool = False


def resolve(score: Any) -> Score:
    """A Score from its name, from a function, or as it is."""
    if isinstance(score, Score):
        return score
    if callable(score):
        return Score(torch_function(score), getattr(score, "__name__", "score"))
    if score in SCORES:
        return SCORES[score]
    fix = f"one of {', '.join(SCORES)}, or a function (outputs, targets) -> number(s)"
    raise UsageError(f"no score {score!r}", fix=fix)


def torch_function(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Hand a user's function torch tensors, as in a training script."""

    def call(outputs: Any, targets: Any) -> Any:
        import torch

        from karui.structure import unflatten

        leaves, tree = flatten(outputs)
        tensors = [torch.from_numpy(leaf) for leaf in leaves]
        given = torch.from_numpy(targets) if targets is not None else None
        value = function(unflatten(tensors, tree), given)
        return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value

    return call


def evaluate(score: Score, outputs: Any, targets: Any, rows: int) -> Array:
    """The score of ``rows`` samples: float64 of shape (rows,), or () for one number in all.

    Raises UsageError when the function fails or gives anything else.
    """
    import numpy as np

    with users_code(UsageError, f"the score {score.name!r} failed"):
        values = np.asarray(score.function(outputs, targets), np.float64)
    if values.shape not in ((rows,), ()):
        raise UsageError(
            f"the score {score.name!r} gave {values.shape} numbers for {rows} samples",
            fix="return one number per sample, or one for the whole set",
        )
    return values


def logits(outputs: Any) -> Array:
    """The array that holds the class scores."""
    if isinstance(outputs, dict) and "logits" in outputs:
        outputs = outputs["logits"]
    first: Array = flatten(outputs)[0][0]
    return first


def top1(outputs: Any, targets: Array) -> Array:
    return top_k(outputs, targets, 1)


def top5(outputs: Any, targets: Array) -> Array:
    return top_k(outputs, targets, 5)


def top_k(outputs: Any, targets: Array, k: int) -> Array:
    """1.0 where the label is among the ``k`` largest of (n, classes, ...), else 0.0; shape (n,)."""
    import numpy as np

    scores = logits(outputs)
    check_labels(scores, targets)
    own = np.take_along_axis(scores, np.expand_dims(targets, 1), 1)
    larger = (scores > own).sum(1)
    order = np.arange(scores.shape[1]).reshape([1, -1] + [1] * (scores.ndim - 2))
    earlier = ((scores == own) & (order < np.expand_dims(targets, 1))).sum(1)
    broken = np.isnan(own)[:, 0]
    hit = ((larger + earlier < k) & ~broken).astype(np.float64)
    return np.asarray(hit.reshape(len(hit), -1).mean(1))


def check_labels(scores: Array, targets: Array) -> None:
    import numpy as np

    if scores.ndim < 2 or targets.shape != scores.shape[:1] + scores.shape[2:]:
        why = f"outputs have shape {scores.shape}, targets {targets.shape}"
        raise UsageError(
            "the targets do not fit a classification score",
            why=why,
            fix='for regression use score="mse", or give your own function',
        )
    if not np.issubdtype(targets.dtype, np.integer):
        raise UsageError(
            "class labels must be integers",
            why=f"targets are {targets.dtype}",
            fix='for regression use score="mse"',
        )
    if targets.size and (targets.min() < 0 or targets.max() >= scores.shape[1]):
        why = f"labels run from {targets.min()} to {targets.max()}, the model has {scores.shape[1]} classes"
        raise UsageError("labels are out of range", why=why, fix="renumber the labels from 0")


def mse(outputs: Any, targets: Array) -> Array:
    """Mean squared error of each sample of the first output; shape (n,)."""
    import numpy as np

    first = logits(outputs)
    if first.size != targets.size:
        why = f"outputs have shape {first.shape}, targets {targets.shape}"
        raise UsageError("the targets do not fit the outputs", why=why)
    error = (first.reshape(len(first), -1) - targets.reshape(len(targets), -1)).astype(np.float64)
    return np.asarray((error**2).mean(1))


def agreement(outputs: Any, targets: Any) -> Array:
    """1.0 where the answer is the original model's: same class, or within 1 % of its scale."""
    import numpy as np

    mine, theirs = logits(outputs), logits(targets)
    if mine.ndim >= 2 and mine.shape[1] > 1:
        same = mine.argmax(1) == theirs.argmax(1)
    else:
        same = np.abs(mine - theirs) <= 0.01 * max(float(np.abs(theirs).max()), 1e-12)
    return np.asarray(same.reshape(len(same), -1).mean(1), np.float64)


SCORES = {
    "top1": Score(top1, "top1", share=True),
    "top5": Score(top5, "top5", share=True),
    "mse": Score(mse, "mse", higher_is_better=False),
    "agreement": Score(agreement, "agreement", share=True, reference=True),
}
