"""Hints: layers of a student are led to what layers of the teacher give, through learned projections.

Romero et al. 2015, arXiv:1412.6550. Projections train with the student and are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, final

import torch
from torch import Tensor, nn

from karui.errors import UsageError
from karui.graph.training.losses import squares

LEAST = 2  # layers that both have: the last gives the answers


@final
class Hinted(nn.Module):
    """``student`` with a projection for each pair of layers; called, it is the student.

    pairs: paths of a module of the student and of one of the teacher. weight: of the hints in the loss.
    A context manager: hooks listen while it is open.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, pairs: Sequence[tuple[str, str]], weight: float
    ) -> None:
        nn.Module.__init__(self)
        self.student, self.pairs, self.weight = student, tuple(pairs), weight
        self.asked = [teacher]  # in a list: its parameters are not this module's
        self.projections = nn.ModuleList()
        self.axes: list[int] = []
        self.mine: dict[str, Tensor] = {}
        self.theirs: dict[str, Tensor] = {}
        self.hooks = ExitStack()

    def __enter__(self) -> Hinted:
        listen(self.hooks, self.student, [one for one, _ in self.pairs], self.mine)
        listen(self.hooks, self.asked[0], [other for _, other in self.pairs], self.theirs)
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.student(*args, **kwargs)

    def fit(self) -> None:
        """Make the projections for the shapes that were seen in a call of both."""
        for one, other in self.pairs:
            axis, sizes = between(one, self.mine[one], other, self.theirs[other])
            self.axes.append(axis)
            self.projections.append(nn.Linear(*sizes))

    def loss(self) -> Tensor:
        """Of the last call of both."""
        parts = [
            squares(
                project(self.mine[one].float().movedim(axis, -1)),
                self.theirs[other].float().movedim(axis, -1),
            )
            for (one, other), axis, project in zip(self.pairs, self.axes, self.projections)
        ]
        return self.weight * torch.stack(parts).mean()


def last(seen: Tensor, axis: int) -> Tensor:
    """In full precision, with the axis that a projection maps at the end."""
    return seen.float().movedim(axis, -1)


def listen(hooks: ExitStack, model: nn.Module, paths: Sequence[str], seen: dict[str, Tensor]) -> None:
    """Keep in ``seen`` what the modules at ``paths`` give."""
    known = dict(model.named_modules())
    for path in paths:
        if path not in known:
            raise UsageError(
                f"hints: there is no layer {path!r}", fix=f"one of: {', '.join(list(known)[1:13])}"
            )

        def keep(_: nn.Module, __: Any, answer: Any, path: str = path) -> None:
            seen[path] = answer

        hooks.callback(known[path].register_forward_hook(keep).remove)


def between(one: str, mine: Any, other: str, theirs: Any) -> tuple[int, tuple[int, int]]:
    """The axis along which two answers differ, and both sizes there; the channels where they are alike."""
    if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
        raise UsageError(f"hints: {one} or {other} gives no tensor", fix="name layers that give one tensor")
    unlike = [axis for axis in range(mine.ndim) if mine.shape[axis] != theirs.shape[axis : axis + 1].numel()]
    if mine.ndim != theirs.ndim or len(unlike) > 1 or unlike == [0]:
        raise UsageError(
            f"hints: {one} gives {tuple(mine.shape)}, and {other} of the teacher {tuple(theirs.shape)}",
            why="a projection maps one axis",
            fix="name layers whose answers differ in the number of channels alone",
        )
    axis = unlike[0] if unlike else 1
    return axis, (mine.shape[axis], theirs.shape[axis])


def pairs_of(hints: Sequence[str]) -> list[tuple[str, str]]:
    """``layer`` for the same path in both, ``mine:theirs`` for two."""
    return [(one, other or one) for one, _, other in (hint.partition(":") for hint in hints)]


def found_in(student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """The layers in the middle and before the last, among those that both have at the same path."""
    known = dict(teacher.named_modules())
    layers = [
        path
        for path, part in student.named_modules()
        if path in known and type(part) is type(known[path]) and is_layer(part)
    ]
    if len(layers) < LEAST:
        raise UsageError(
            "no layers for hints were found",
            why="student and teacher have no layers at the same paths",
            fix='name them: hints=["layer_of_student:layer_of_teacher"]',
        )
    inner = layers[:-1]
    return [(path, path) for path in dict.fromkeys([inner[(len(inner) - 1) // 2], inner[-1]])]


def is_layer(part: nn.Module) -> bool:
    return isinstance(part, (nn.Linear, nn.modules.conv._ConvNd))
