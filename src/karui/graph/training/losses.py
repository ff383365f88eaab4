"""What is minimised: how far answers are from a teacher's, and from labels.

Hinton et al. 2015, arXiv:1503.02531 (class scores at a temperature); Huang et al. 2022, arXiv:2205.10536
(DIST: correlations of classes and of samples).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from karui.artifact import Signature
from karui.data import Split
from karui.errors import Unsupported, UsageError
from karui.graph.call import arguments
from karui.graph.training.feed import FIX
from karui.score import logits
from karui.structure import flatten, unflatten

Kind = Literal["auto", "kd", "dist", "squares"]
HALF = 0.5  # of the loss is the teacher's where there are labels
TEMPERATURE = 4.0  # of class scores that are compared by their divergence
NOTHING = 1e-6  # of a loss: rounding alone
MOST_BYTES = 500_000_000  # of a teacher's answers that are remembered
SPREAD = 1e-8  # least variance of answers that differences are divided by


@dataclass(frozen=True)
class Aim:
    """distill: share of the loss that is the distance to the teacher's answers; the rest is the labels'. None
    for half of it, and for all where there are no labels.

    loss: kd (divergence of class scores), dist (their correlations), squares (normalised squared differences
    of all answers), or auto: kd where labels say that there are classes, else squares. temperature: that
    scores are divided by; None for 4, and 1 with dist.
    """

    distill: float | None = None
    loss: Kind = "auto"
    temperature: float | None = None

    def share(self, *, labelled: bool) -> float:
        """The teacher's share of the loss; raises UsageError where there are no labels for the rest."""
        wanted = self.distill
        if wanted is None:
            return HALF if labelled else 1.0
        if not 0 <= wanted <= 1:
            raise UsageError(f"distill is a share of the loss, not {wanted:g}", fix="distill from 0 to 1")
        if wanted < 1 and not labelled:
            raise UsageError(f"distill={wanted:g} needs labels", why="the training data have none", fix=FIX)
        return wanted


@final
class Loss:
    """A function of a module and a batch, made for data like ``first``.

    extra: added to it, asked after the module and the teacher have answered.
    """

    def __init__(
        self,
        teacher: nn.Module,
        signature: Signature,
        aim: Aim,
        first: Split,
        extra: Callable[[], Tensor] | None = None,
    ) -> None:
        self.teacher, self.style, self.aim, self.extra = teacher, signature.style, aim, extra
        kind = None if first.targets is None else first.targets.dtype.kind
        self.share = aim.share(labelled=kind is not None)
        self.known: tuple[list[Tensor], Any] | None = None
        self.distance = self.found(aim, first, classes=kind is not None and kind in "iub")

    def found(self, aim: Aim, first: Split, *, classes: bool) -> Callable[[Any, Any], Tensor]:
        scores: Any = logits(self.taught(first)) if self.share > 0 else None
        single = scores is not None and (scores.ndim < 2 or scores.shape[1] < 2)
        kind = ("kd" if classes and not single else "squares") if aim.loss == "auto" else aim.loss
        if kind == "squares":
            return squares
        if single:
            raise UsageError(
                f"loss={kind} would always be zero",
                why=f"it compares scores of classes, and the model gives {tuple(scores.shape)}",
                fix="loss=squares",
            )
        measure, usual = (kd, TEMPERATURE) if kind == "kd" else (dist, 1.0)
        temperature = usual if aim.temperature is None else aim.temperature
        if temperature <= 0:
            raise UsageError(f"temperature must be above 0, got {temperature:g}")
        return lambda answer, wanted: measure(answer, wanted, temperature)

    def __call__(self, module: Any, batch: Split) -> Tensor:
        """The mean over the samples of ``batch``, a number with a gradient."""
        args, kwargs = self.call(batch)
        answer, parts = module(*args, **kwargs), list[Tensor]()
        if self.share > 0 or self.extra:
            wanted = self.taught(batch)
            parts.append(self.share * self.distance(answer, wanted))
        if self.share < 1:
            parts.append((1 - self.share) * label_loss(answer, torch.as_tensor(batch.targets)))
        if self.extra:
            parts.append(self.extra())
        return torch.stack(parts).sum()

    @torch.no_grad()
    def taught(self, batch: Split) -> Any:
        """What the teacher answers."""
        if self.known and batch.rows is not None:
            leaves, tree = self.known
            return unflatten([leaf[batch.rows] for leaf in leaves], tree)
        args, kwargs = self.call(batch)
        return self.teacher(*args, **kwargs)

    def remember(self, whole: Split, size: int) -> None:
        """Ask the teacher about a whole set once, ``size`` samples at a time, and look its answers up then.

        Nothing is remembered of answers that are not one for each sample, or that take more than MOST_BYTES.
        """
        parts: list[list[Tensor]] = []
        for start in range(0, len(whole), size):
            batch = whole.take(slice(start, start + size))
            leaves, tree = flatten(self.taught(batch))
            if not all(isinstance(leaf, Tensor) and leaf.shape[:1] == (len(batch),) for leaf in leaves):
                return
            if sum(leaf.nbytes for leaf in leaves) * len(whole) > MOST_BYTES * len(batch):
                return
            parts.append(leaves)
        self.known = [torch.cat(pieces) for pieces in zip(*parts)], tree

    def call(self, batch: Split) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments(self.style, {name: torch.from_numpy(array) for name, array in batch.inputs.items()})

    def told(self) -> dict[str, Any]:
        return {"distill": self.share, "labels": self.share < 1}


@torch.no_grad()
def check_gap(loss: Loss, model: nn.Module, batch: Split) -> None:
    """Raises Unsupported where the loss is zero from the start: nothing would be learned."""
    if float(loss(model, batch)) < NOTHING:
        raise Unsupported(
            "there is nothing to learn: the loss is zero",
            why="the model answers as its teacher does",
            fix="give training data with labels, or a teacher that knows more",
        )


def kd(answer: Any, wanted: Any, temperature: float = TEMPERATURE) -> Tensor:
    """How far class scores (n, classes, ...) are from the teacher's: KL divergence at a temperature."""
    pair: tuple[Any, Any] = logits(answer), logits(wanted)
    one, other = (functional.log_softmax(part / temperature, 1) for part in pair)
    return functional.kl_div(one, other, reduction="none", log_target=True).sum(1).mean() * temperature**2


def dist(answer: Any, wanted: Any, temperature: float = 1.0) -> Tensor:
    """Correlations of class probabilities with the teacher's that are missing from 1: of each sample over the
    classes, and of each class over the samples.
    """
    pair: tuple[Any, Any] = logits(answer), logits(wanted)
    one, other = (functional.softmax(part / temperature, 1).movedim(1, -1).flatten(0, -2) for part in pair)
    return temperature**2 * (apart(one, other) + apart(one.t(), other.t()))


def apart(one: Tensor, other: Tensor) -> Tensor:
    """1 less the correlation of each row with the other's, in the mean."""
    return 1 - functional.cosine_similarity(one - one.mean(1, True), other - other.mean(1, True)).mean()


def squares(answer: Any, wanted: Any) -> Tensor:
    """Squared differences of all answers, each as a share of the teacher's own spread."""
    pairs = [
        (one, other) for one, other in zip(flatten(answer)[0], flatten(wanted)[0]) if one.is_floating_point()
    ]
    spread = [other.var(correction=0).clamp(min=SPREAD) for _, other in pairs]
    return torch.stack(
        [functional.mse_loss(one, other) / by for (one, other), by in zip(pairs, spread)]
    ).sum()


def label_loss(answer: Any, targets: Tensor) -> Tensor:
    """Cross-entropy for classes as whole numbers, else the mean squared difference."""
    found: Any = logits(answer)
    if not targets.is_floating_point():
        if found.ndim < 2 or found.shape[1] < 2:
            raise UsageError(
                "the cross-entropy of whole-number targets would always be zero",
                why=f"the model gives {tuple(found.shape)}: there are no scores of two classes or more",
                fix="give targets as floats in the shape of the answers, or distill=1",
            )
        return functional.cross_entropy(found, targets.long())
    if found.numel() != targets.numel():
        raise UsageError(
            f"answers of shape {tuple(found.shape)} cannot be compared with targets {tuple(targets.shape)}",
            fix="distill=1 needs no targets; your own training function takes any",
        )
    return functional.mse_loss(found, targets.view_as(found).to(found.dtype))
