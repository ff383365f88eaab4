"""Sets of units that can go together: what else has to go, so that every tensor stays a rectangle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from karui.graph.units.classes import FIXED, Bonds, Classes, bonds

ROUNDS = 100  # of adding what is missing; sets that need more are given up


@dataclass
class Removal:
    """The rules between classes, with every label replaced by its class.

    kept: classes that must stay, beside the frozen ones.
    """

    classes: Classes
    kept: set[int] = field(default_factory=set)
    tables: list[list[list[int]]] = field(init=False)
    members: list[list[frozenset[int] | None]] = field(init=False)  # of a row, where each stands there once
    bonds: Bonds = field(init=False)
    rows_of: dict[int, dict[int, list[int]]] = field(init=False)
    alike: dict[int, int] = field(init=False)  # classes with one number stand in the same rows

    def __post_init__(self) -> None:
        find, seen = self.classes.find, {}
        for table in self.classes.ragged:
            rows = torch.unique(find(table), dim=0).tolist()
            if len(rows) > 1:
                seen[tuple(map(tuple, rows))] = rows
        self.tables = list(seen.values())
        self.members = [
            [sole if len(sole := frozenset(row)) == len(row) else None for row in rows]
            for rows in self.tables
        ]
        self.bonds = bonds(self.classes)
        self.rows_of = {}  # where a class stands, by table
        for number, rows in enumerate(self.tables):
            for place, row in enumerate(rows):
                for label in row:
                    self.rows_of.setdefault(label, {}).setdefault(number, []).append(place)
        numbers: dict[str, int] = {}
        self.alike = {
            label: numbers.setdefault(repr(found), len(numbers)) for label, found in self.rows_of.items()
        }

    def may_go(self, label: int) -> bool:
        return label != FIXED and label not in self.kept and label not in self.classes.frozen

    def closure(self, start: Iterable[int], cost: Mapping[int, float], gone: set[int]) -> set[int] | None:
        """What leaves when ``start`` follows ``gone``, which needs nothing more by itself.

        ``start`` and the cheapest further classes that have to go with it; None where that cannot be.
        """
        leaves = set(start) - gone
        added: set[int] | None = leaves
        for _ in range(ROUNDS):
            if added is None or not all(map(self.may_go, added)):
                return None
            leaves |= added
            added = self.bonds.missing(gone, leaves) or self.missing(Away(self, gone, leaves), cost)
            if added is not None and not added:
                return leaves
        return None

    def missing(self, away: Away, cost: Mapping[int, float]) -> set[int] | None:
        """Classes that bring the rows of one table to the same length."""
        touched = set().union(*(self.rows_of.get(label, ()) for label in away.leaves))
        for number in sorted(touched):
            rows, counts = self.tables[number], away.counts(number)
            left = [(count, row) for count, row in zip(counts, rows) if count < len(row)]
            if not left:
                return None
            most = max(count for count, _ in left)
            added: set[int] = set()
            for count, row in left:
                times = Counter(row)
                wanted = most - count - sum(times[label] for label in added)
                while wanted > 0:
                    if (choice := self.cheapest(times, wanted, away, added, cost)) is None:
                        return None
                    added.add(choice)
                    away.count(choice)
                    wanted -= times[choice]
            if added:
                return added
        return set()

    def cheapest(
        self, times: Mapping[int, int], wanted: int, away: Away, added: set[int], cost: Mapping[int, float]
    ) -> int | None:
        """Of a row, in which a class may stand several times: rather none that is more than ``wanted``."""
        helped: dict[int, int] = {}

        def price(label: int) -> tuple[bool, int, float]:
            kind = self.alike[label]
            if kind not in helped:
                helped[kind] = away.helped(label)
            return times[label] > wanted, -helped[kind], cost.get(label, 0.0)

        gone, leaves, kept, frozen = away.gone, away.leaves, self.kept, self.classes.frozen
        free = [
            label
            for label in times
            if label not in gone  # one by one: this is asked millions of times
            and label not in leaves
            and label not in added
            and label not in kept
            and label not in frozen
            and label != FIXED
        ]
        return min(free, key=price, default=None)


@dataclass
class Away:
    """What is gone and what leaves now, with how many that is in the rows of each table."""

    removal: Removal
    gone: set[int]
    leaves: set[int]
    known: dict[int, list[int]] = field(default_factory=dict)
    short: dict[int, list[bool]] = field(default_factory=dict)

    def __contains__(self, label: int) -> bool:
        return label in self.gone or label in self.leaves

    def counts(self, number: int) -> list[int]:
        if number not in self.known:
            members = self.removal.members[number]
            self.known[number] = [
                sum(map(self.__contains__, row)) if sole is None else self.among(sole)
                for row, sole in zip(self.removal.tables[number], members)
            ]
            self.compare(number)
        return self.known[number]

    def among(self, sole: frozenset[int]) -> int:
        """How many of a row's classes, each of which stands there once."""
        return len(sole & self.gone) + len((sole & self.leaves) - self.gone)

    def compare(self, number: int) -> None:
        most = max(self.known[number])
        self.short[number] = [count < most for count in self.known[number]]

    def count(self, label: int) -> None:
        """One more leaves."""
        for number, places in self.removal.rows_of.get(label, {}).items():
            for place in places:
                self.counts(number)[place] += 1
            self.compare(number)

    def helped(self, label: int) -> int:
        """How many tables lack an element in the row where this class stands."""
        found = 0
        for number, places in self.removal.rows_of.get(label, {}).items():
            if number not in self.short:
                self.counts(number)
            short = self.short[number]
            found += any(short[place] for place in places)
        return found
