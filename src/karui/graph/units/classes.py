"""Which units stand or fall together: a union-find over integer labels, and the rules between classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

FIXED = -1  # the label of an element that can never go


@dataclass
class Classes:
    """Every label belongs to one class.

    frozen: class -> why it stays. whole: a class that stands for whole rows of others (a head for its
    channels): it goes exactly when all of one of its rows go, and then all rows do.
    crossed: a class that lies in a row and in a column (a query channel where all heads share one key): it
    goes exactly when either of the two goes; (row, column) each.
    ragged: (rows, columns) of labels where every row must lose as many, or go as a whole.
    lenient: whether classes that an operation looks at together may go all the same, and change each other;
    inexact: class -> that operation.
    """

    parent: list[int] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    whole: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)
    rows_of: dict[tuple[int, ...], int] = field(default_factory=dict)
    crossed: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    cells: dict[tuple[int, int], int] = field(default_factory=dict)
    ragged: list[Tensor] = field(default_factory=list)
    lenient: bool = False
    inexact: dict[int, str] = field(default_factory=dict)

    def new(self, count: int) -> Tensor:
        """``count`` labels, each a class of its own."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def roots(self) -> Tensor:
        """The class of every label."""
        return torch.tensor([self.root(label) for label in range(len(self.parent))], dtype=torch.int64)

    def find(self, labels: Tensor) -> Tensor:
        """The class of each label; ``FIXED`` stays."""
        unique, back = torch.unique(labels, return_inverse=True)
        roots = torch.tensor([FIXED if x < 0 else self.root(x) for x in unique.tolist()], dtype=torch.int64)
        return roots[back]

    def unify(self, one: Tensor, other: Tensor, why: str) -> None:
        """Element by element; what meets a fixed element is frozen with that reason."""
        one, other = torch.broadcast_tensors(one, other)  # type: ignore[no-untyped-call]
        size = len(self.parent) + 1  # pairs as single numbers are many times faster to sort
        pairs = torch.unique((one.reshape(-1) + 1) * size + other.reshape(-1) + 1)
        for a, b in zip((pairs // size - 1).tolist(), (pairs % size - 1).tolist()):
            if a >= 0 and b >= 0:
                self.join(a, b)
            elif a != b:
                self.freeze_one(max(a, b), why)

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        keep, gone = min(a, b), max(a, b)
        self.parent[gone] = keep
        if gone in self.frozen:
            self.frozen.setdefault(keep, self.frozen.pop(gone))
        if gone in self.inexact:
            self.inexact.setdefault(keep, self.inexact.pop(gone))
        if gone in self.whole:
            self.whole.setdefault(keep, []).extend(self.whole.pop(gone))
        if gone in self.crossed:
            self.crossed.setdefault(keep, []).extend(self.crossed.pop(gone))

    def freeze(self, labels: Tensor, why: str) -> None:
        for label in torch.unique(labels).tolist():
            if label >= 0:
                self.freeze_one(label, why)

    def freeze_one(self, label: int, why: str) -> None:
        self.frozen.setdefault(self.root(label), why)

    def seen_together(self, labels: Tensor, why: str) -> None:
        """What is left of units that an operation looks at together is not what it was: they stay."""
        if not self.lenient:
            self.freeze(labels, why)
            return
        for label in torch.unique(labels).tolist():
            if label >= 0:
                self.inexact.setdefault(self.root(label), why)

    def stands_for(self, rows: Tensor) -> Tensor:
        """For (n, m) labels, n labels: each goes with its whole row. The same row gives the same label."""
        return torch.tensor([self.row_label(row) for row in self.find(rows).tolist()], dtype=torch.int64)

    def row_label(self, row: Sequence[int]) -> int:
        members = tuple(sorted({label for label in row if label >= 0}))
        if not members or len(members) == len(set(row)) == 1:
            return members[0] if members else FIXED
        if members not in self.rows_of:
            label = int(self.new(1)[0])
            self.rows_of[members] = label
            self.whole[label] = [members]
            if FIXED in row:
                self.frozen[label] = "a part of it is fixed"
        return self.rows_of[members]

    def cross(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Labels of what goes with its row or its column, element by element."""
        rows, columns = torch.broadcast_tensors(self.find(rows), self.find(columns))  # type: ignore[no-untyped-call]
        pairs, back = torch.unique(
            torch.stack([rows.reshape(-1), columns.reshape(-1)]), dim=1, return_inverse=True
        )
        cells = torch.tensor([self.cell(row, column) for row, column in pairs.T.tolist()])
        return cells[back].reshape(rows.shape)

    def cell(self, row: int, column: int) -> int:
        if FIXED in (row, column) or row == column:
            return max(row, column)
        if (row, column) not in self.cells:
            label = int(self.new(1)[0])
            self.cells[row, column] = label
            self.crossed[label] = [(row, column)]
        return self.cells[row, column]

    def settle(self) -> None:
        """What can go with neither its row nor its column stays."""
        for label, pairs in self.crossed.items():
            for row, column in pairs:
                if self.root(row) in self.frozen and self.root(column) in self.frozen:
                    self.freeze_one(label, self.frozen[self.root(column)])

    def equal_rows(self, rows: Tensor) -> None:
        """Demand that each row of (n, m) labels loses as many, or goes as a whole."""
        if rows.shape[0] > 1 and rows.shape[1] > 1:
            self.ragged.append(rows)


@dataclass(frozen=True)
class Bonds:
    """``whole`` and ``crossed`` with every label replaced by its class: what goes with what.

    naming: class -> the keys of ``whole`` and ``crossed`` whose rules name it.
    """

    whole: Mapping[int, Sequence[frozenset[int]]]
    crossed: Mapping[int, Sequence[tuple[int, int]]]
    naming: Mapping[int, set[int]]

    def missing(self, gone: Set[int], leaves: Set[int]) -> set[int]:
        """Classes that go with those that leave after others that are gone, which need nothing more.

        A head goes with all of its channels, and takes all that belong to it along. Where rows and columns
        cross, what has neither then takes its column.
        """
        added: set[int] = set()
        for label in {label for one in leaves for label in self.naming.get(one, ())}:
            rows = self.whole.get(label, ())
            if label in leaves or any(all(one in gone or one in leaves for one in row) for row in rows):
                added |= {label}.union(*rows) if rows else set()
            if any(row in leaves or column in leaves for row, column in self.crossed.get(label, ())):
                added.add(label)
        return added - leaves - gone or {
            column
            for label in leaves & self.crossed.keys()
            for row, column in self.crossed[label]
            if {row, column}.isdisjoint(leaves) and {row, column}.isdisjoint(gone)
        }

    def all_with(self, label: int) -> frozenset[int]:
        """A class and everything that goes with it."""
        leaves = {label}
        while added := self.missing(frozenset(), leaves):
            leaves |= added
        return frozenset(leaves)


def bonds(classes: Classes) -> Bonds:
    root, find = classes.root, classes.find
    whole = {
        root(label): [frozenset(find(torch.tensor(row)).tolist()) for row in rows]
        for label, rows in classes.whole.items()
    }
    crossed = {
        root(label): [(root(row), root(column)) for row, column in pairs]
        for label, pairs in classes.crossed.items()
    }
    naming: dict[int, set[int]] = {}
    for rules in (whole, crossed):
        for label, parts in rules.items():
            for one in {label, *(member for part in parts for member in part)}:
                naming.setdefault(one, set()).add(label)
    return Bonds(whole, crossed, naming)
