"""Batches to learn from, in an order that a seed tells; a part of them is held out when asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from karui.data import Split, as_batch, is_pair, items, shuffled
from karui.errors import UsageError

if TYPE_CHECKING:
    from karui.data import Array

LEAST_ROWS = 2  # of a batch in training: a norm cannot tell a spread from one sample
FIX = "give Task(train=...): a Dataset, a pair of arrays or a list of (inputs, targets) batches"


@final
class Feed:
    """Of ``data`` as in ``Task``, with the inputs named ``names``.

    batch: samples of a batch where they are put together here. held_out: share that is never trained on.
    rows: batches of other numbers of samples are left out.
    """

    def __init__(
        self,
        data: Any,
        names: Sequence[str],
        batch: int,
        seed: int = 0,
        held_out: float = 0.0,
        rows: int | None = None,
    ) -> None:
        self.data, self.names, self.batch = data, names, batch
        self.seed, self.share, self.rows = seed, held_out, rows

    def first(self) -> Split:
        """The first batch of the first pass."""
        return next(self.batches())

    def batches(self) -> Iterator[Split]:
        """Batches without end, pass after pass."""
        for number in itertools.count():
            seen = 0
            for batch in self.one_pass(number):
                seen += 1
                yield batch
            self.check(number, seen)

    def check(self, number: int, seen: int) -> None:
        """Raises UsageError after a pass that gave nothing."""
        if not seen:
            why = "an iterator gives its batches only once" if number else "it is empty or too small"
            raise UsageError("the training set gives no batch of two samples or more", why=why, fix=FIX)

    def steps_a_pass(self) -> int:
        data = self.part(held=False) if self.share else self.whole()
        if is_map(data) or (isinstance(data, Split) and self.rows is None):
            return max(len(data) // self.batch, 1)
        return sum(1 for _ in self.one_pass(0))

    def whole(self) -> Any:
        """All the data. A Split tells the rows of its batches where every pass gives the same samples: a
        function may give others each time, and so may a Dataset of the user's own.
        """
        made = callable(self.data) and not isinstance(self.data, Iterable)
        data = self.data() if made else self.data
        if type(data) is TensorDataset and len(data.tensors) == 2:
            data = data.tensors
        found: Any = as_batch(data, self.names, "training") if is_pair(data) else data
        return found.placed() if isinstance(found, Split) and not made else found

    def one_pass(self, number: int) -> Iterator[Split]:
        for batch in self.cut(self.part(held=False), self.seed + number):
            if len(batch) >= LEAST_ROWS and self.rows in (None, len(batch)):
                yield batch

    def held(self) -> list[Split]:
        """What is held out, the same whenever it is asked for."""
        whole = self.part(held=True)
        if isinstance(whole, Split):
            return [
                whole.take(slice(start, start + self.batch)) for start in range(0, len(whole), self.batch)
            ]
        given = DataLoader(whole, self.batch) if is_map(whole) else whole
        return [as_batch(item, self.names, "training") for item in given]

    def part(self, *, held: bool) -> Any:
        """The data without what is held out, or that."""
        whole = self.whole()
        if not self.share:
            return whole
        if not isinstance(whole, (Split, list, tuple)) and not is_map(whole):
            raise UsageError(
                "nothing can be held out of this training set",
                why="an iterable may give the same samples again in another place",
                fix=FIX,
            )
        return chosen(whole, rows_of_part(len(whole), self.share, self.seed, held=held))

    def cut(self, whole: Any, seed: int) -> Iterator[Split]:
        if isinstance(whole, Split):
            order, size = shuffled(len(whole), seed), min(self.batch, len(whole))
            stops = range(size, len(whole) + 1, size) if size else ()
            yield from (whole.take(order[stop - size : stop]) for stop in stops)
            return
        for item in self.loader(whole, seed) if is_map(whole) else items(whole, "training"):
            yield as_batch(item, self.names, "training")

    def loader(self, data: Any, seed: int) -> Iterable[Any]:
        """Whole batches only: what is left over would tell a norm little, and comes in another pass."""
        drawn, size = torch.Generator().manual_seed(seed), min(self.batch, len(data)) or 1
        return DataLoader(data, size, shuffle=True, generator=drawn, drop_last=True)


def is_map(data: Any) -> bool:
    return isinstance(data, Dataset) and not isinstance(data, IterableDataset)


def rows_of_part(count: int, share: float, seed: int, *, held: bool) -> Array:
    """Positions of the samples, or of the batches of a list, that are held out, or of the others."""
    import numpy as np

    order = shuffled(count, seed)
    out = min(max(round(share * count), 1), count)
    return order[:out] if held else np.sort(order[out:])


def chosen(whole: Any, rows: Array) -> Any:
    if isinstance(whole, Split):
        return whole.take(rows)
    positions = rows.tolist()
    return Subset(whole, positions) if is_map(whole) else [whole[position] for position in positions]
