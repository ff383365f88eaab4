"""Sets of units that can go together: what else has to go, so that every tensor stays a rectangle."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from karui.graph.units.classes import FIXED, Classes

ROUNDS = 100  # of adding what is missing; sets that need more are given up


@dataclass
class Removal:
    """The rules between classes, with every label replaced by its class.

    kept: classes that must stay, beside the frozen ones.
    """

    classes: Classes
    kept: set[int] = field(default_factory=set)
    tables: list[list[list[int]]] = field(init=False)
    whole: dict[int, list[frozenset[int]]] = field(init=False)
    touching: dict[int, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        find, seen = self.classes.find, {}
        for table in self.classes.ragged:
            rows = torch.unique(find(table), dim=0).tolist()
            if len(rows) > 1:
                seen[tuple(map(tuple, rows))] = rows
        self.tables = list(seen.values())
        self.whole = {
            self.classes.root(label): [frozenset(find(torch.tensor(row)).tolist()) for row in rows]
            for label, rows in self.classes.whole.items()
        }
        self.touching = {}
        for number, rows in enumerate(self.tables):
            for label in {label for row in rows for label in row}:
                self.touching.setdefault(label, []).append(number)

    def may_go(self, label: int) -> bool:
        return label != FIXED and label not in self.kept and label not in self.classes.frozen

    def closure(self, start: Iterable[int], cost: Mapping[int, float]) -> set[int] | None:
        """``start`` and the cheapest further classes that have to go with it; None where that cannot be."""
        gone = set(start)
        for _ in range(ROUNDS):
            added = self.whole_ones(gone) or self.missing(gone, cost)
            if added is None or not all(map(self.may_go, gone | added)):
                return None
            if not added:
                return gone
            gone |= added
        return None

    def whole_ones(self, gone: Collection[int]) -> set[int]:
        """A head goes with all of its channels, and takes all that belong to it along."""
        added: set[int] = set()
        for label, rows in self.whole.items():
            if label in gone or any(row <= set(gone) for row in rows):
                added |= {label}.union(*rows) - set(gone)
        return added

    def missing(self, gone: Collection[int], cost: Mapping[int, float]) -> set[int] | None:
        """Classes that bring the rows of one table to the same length."""
        for rows in self.tables:
            counts = [sum(label in gone for label in row) for row in rows]
            left = [(count, row) for count, row in zip(counts, rows) if count < len(row)]
            if not left:
                return None
            most = max(count for count, _ in left)
            added: set[int] = set()
            for count, row in left:
                wanted = most - count - sum(label in added for label in row)
                if wanted > 0:
                    choice = self.cheapest(row, gone, added, cost)
                    if len(choice) < wanted:
                        return None
                    added |= set(choice[:wanted])
            if added:
                return added
        return set()

    def cheapest(
        self, row: Collection[int], gone: Collection[int], added: Collection[int], cost: Mapping[int, float]
    ) -> list[int]:
        free = [label for label in dict.fromkeys(row) if label not in gone and label not in added]
        free = [label for label in free if self.may_go(label)]
        return sorted(free, key=lambda label: (-self.helps(label, gone), cost.get(label, 0.0)))

    def helps(self, label: int, gone: Collection[int]) -> int:
        """How many further tables lack an element in the row where this class stands."""
        found = 0
        for number in self.touching.get(label, ()):
            rows = self.tables[number]
            counts = [sum(member in gone for member in row) for row in rows]
            mine = [count for count, row in zip(counts, rows) if label in row]
            found += min(mine) < max(counts)
        return found
