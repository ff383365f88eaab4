"""A space of recipes: one choice on each axis; a point of it is a recipe."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

from karui.errors import UsageError
from karui.recipe import Recipe, parse_recipe

Point = tuple[int, ...]  # of each axis, which choice


@final
@dataclass(frozen=True)
class Axis:
    """``choices`` are parts of recipes as text, "" for nothing. ordered: each goes farther than the last."""

    name: str
    choices: tuple[str, ...]
    ordered: bool = False

    def __post_init__(self) -> None:
        if len(set(self.choices)) != len(self.choices) or not self.choices:
            raise UsageError(f"the choices of {self.name} are none, or not all different")


@final
@dataclass(frozen=True)
class Space:
    """steps: in the order in which they are applied; then a precision, on a runtime."""

    steps: tuple[Axis, ...]
    precisions: tuple[str, ...]
    runtimes: tuple[str, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (*self.steps, Axis("precision", self.precisions), Axis("runtime", self.runtimes))

    def on(self, runtimes: Sequence[str]) -> Space:
        """The same on those of its runtimes that are named; on all where none is."""
        left = tuple(one for one in self.runtimes if not runtimes or one.partition(":")[0] in runtimes)
        return replace(self, runtimes=left)

    def recipe(self, point: Point) -> Recipe:
        *steps, precision, runtime = (
            axis.choices[place] for axis, place in zip(self.axes, point, strict=True)
        )
        return parse_recipe(" + ".join([*filter(None, steps), f"{precision}@{runtime}"]))

    def points(self) -> Iterator[Point]:
        """All of them, those with the fewest and mildest steps first."""
        every = itertools.product(*(range(len(axis.choices)) for axis in self.axes))
        return iter(sorted(every, key=lambda point: (sum(point[: len(self.steps)]), point)))
