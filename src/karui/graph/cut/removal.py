"""Sets of units that can go together: what else has to go, so that every tensor stays a rectangle."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
    places: dict[int, list[tuple[int, int]]] = field(init=False)

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
        self.places = {}
        for number, rows in enumerate(self.tables):
            for place, row in enumerate(rows):
                for label in set(row):
                    self.places.setdefault(label, []).append((number, place))

    def may_go(self, label: int) -> bool:
        return label != FIXED and label not in self.kept and label not in self.classes.frozen

    def may_all_go(self, labels: set[int]) -> bool:
        """Quick for the thousands of classes that a closure looks at again and again."""
        return FIXED not in labels and labels.isdisjoint(self.kept) and labels.isdisjoint(self.classes.frozen)

    def closure(self, start: Iterable[int], cost: Mapping[int, float]) -> set[int] | None:
        """``start`` and the cheapest further classes that have to go with it; None where that cannot be."""
        gone = set(start)
        if not self.may_all_go(gone):
            return None
        for _ in range(ROUNDS):
            added = self.whole_ones(gone) or self.missing(gone, cost)
            if added is None or not self.may_all_go(added):
                return None
            if not added:
                return gone
            gone |= added
        return None

    def whole_ones(self, gone: set[int]) -> set[int]:
        """A head goes with all of its channels, and takes all that belong to it along."""
        added: set[int] = set()
        for label, rows in self.whole.items():
            if label in gone or any(row <= gone for row in rows):
                added |= {label}.union(*rows) - gone
        return added

    def missing(self, gone: set[int], cost: Mapping[int, float]) -> set[int] | None:
        """Classes that bring the rows of one table to the same length."""
        tables = [[sum(label in gone for label in row) for row in rows] for rows in self.tables]
        for rows, counts in zip(self.tables, tables):
            left = [(count, row) for count, row in zip(counts, rows) if count < len(row)]
            if not left:
                return None
            most = max(count for count, _ in left)
            added: set[int] = set()
            for count, row in left:
                wanted = most - count - sum(label in added for label in row)
                if wanted > 0:
                    free = [label for label in dict.fromkeys(row) if label not in gone and label not in added]
                    choice = self.cheapest(free, tables, cost)
                    if len(choice) < wanted:
                        return None
                    added |= set(choice[:wanted])
            if added:
                return added
        return set()

    def cheapest(
        self, free: Collection[int], counts: Sequence[Sequence[int]], cost: Mapping[int, float]
    ) -> list[int]:
        """Those that may go, best first. counts: of gone elements in each row of each table."""
        going = [label for label in free if self.may_go(label)]
        return sorted(going, key=lambda label: (-self.helps(label, counts), cost.get(label, 0.0)))

    def helps(self, label: int, counts: Sequence[Sequence[int]]) -> int:
        """How many further tables lack an element in the row where this class stands."""
        mine: dict[int, int] = {}
        for number, place in self.places.get(label, ()):
            mine[number] = min(counts[number][place], mine.get(number, counts[number][place]))
        return sum(least < max(counts[number]) for number, least in mine.items())
