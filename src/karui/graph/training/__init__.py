"""Training: one loop on Lightning Fabric, what it learns from, what it minimises, where it goes on.

``learn`` is the whole of it for a model that learns from a teacher, from labels, or from both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from karui.artifact import Signature
from karui.data import Split
from karui.graph.training.feed import Feed
from karui.graph.training.loop import Ways, train
from karui.graph.training.losses import Aim, Loss, check_gap
from karui.graph.training.options import Options
from karui.graph.training.random_state import seeded

if TYPE_CHECKING:
    from karui.data import Arrays


@dataclass(frozen=True)
class Material:
    """What is learned from and how it is called.

    train: as in ``Task``; None for ``calibrate``, arrays by input name. rows: of every batch, for a model
    that takes no other number.
    """

    signature: Signature
    calibrate: Arrays
    train: Any = None
    rows: int | None = None

    def feed(self, options: Options) -> Feed:
        names = [port.name for port in self.signature.inputs]
        data = Split(self.calibrate) if self.train is None else self.train
        return Feed(data, names, self.rows or options.batch, options.seed, options.held_out, self.rows)


def learn(
    model: nn.Module,
    teacher: nn.Module,
    material: Material,
    aim: Aim,
    options: Options,
    ways: Ways | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place, towards the answers of ``teacher`` and the labels, and tell how it went.

    ``teacher`` is only asked, in eval mode and without gradients; the same batch is given to both. The
    answer has steps, loss (before and after, in eval mode), distill and labels, and where they apply
    held_out, stopped and overflows.

    Raises UsageError for data or options that cannot be worked with, Unsupported when there is nothing to
    learn or the loss is no longer finite.
    """
    feed = material.feed(options)
    model.eval()
    with seeded(options.seed):
        first = feed.first()
        loss = Loss(teacher, material.signature, aim, first, ways.extra if ways else None)
        check_gap(loss, model, first)
        if loss.share > 0 and not (ways and ways.extra) and material.rows is None:
            remember(loss, feed, options, ways.effort if ways else 1.0)
    return train(model, loss, feed, options, ways) | loss.told()


def remember(loss: Loss, feed: Feed, options: Options, effort: float) -> None:
    """Let the teacher answer once for each sample, where every pass gives the same ones again."""
    whole = feed.whole()
    if isinstance(whole, Split) and whole.rows is not None:
        steps = feed.steps_a_pass()
        if effort * options.total(steps) > steps:
            loss.remember(whole, options.batch)
