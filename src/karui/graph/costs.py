"""What a narrowed model costs, from how many positions along each table of labels are gone.

Counts are what a search adds up: a unit that leaves takes its positions out of every table that has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from karui.errors import Unsupported, UsageError
from karui.graph.consumers import tensor_at
from karui.graph.cut.shapes import gone_of
from karui.graph.macs import products
from karui.graph.units import Units
from karui.graph.units.groups import Group
from karui.units import parse_bytes

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bundles = Sequence[frozenset[int]]


@dataclass(frozen=True)
class Cost:
    """tables: labels. of: how much it costs when so many positions of each table are gone, (tables,)."""

    roots: Tensor
    tables: Sequence[Tensor]
    of: Callable[[Floats], float]

    def gone(self, removed: Collection[int]) -> Floats:
        """Positions of each table that a set of classes takes."""
        gone = gone_of(self.roots, removed)
        return np.array([int(gone.at(table).sum()) for table in self.tables], np.float64)

    def without(self, removed: Collection[int]) -> float:
        return self.of(self.gone(removed))

    def rows(self, bundles: Bundles, counts: Sequence[int]) -> Floats:
        """What is gone after each of ``counts`` of the bundles, (counts, tables)."""
        when = torch.full((max(len(self.roots), 1),), len(bundles))
        for number, bundle in enumerate(bundles):
            when[list(bundle)] = number
        when = when[self.roots] if len(self.roots) else when
        found = [when[table[table >= 0]].sort().values for table in self.tables]
        asked = torch.tensor(counts)
        columns = [torch.searchsorted(one, asked).numpy() for one in found]
        return np.stack(columns, 1).astype(np.float64) if columns else np.zeros((len(counts), 0))


def macs(units: Units) -> Cost:
    """Multiply-accumulates of a sample."""
    found = products(units)
    parts = [(one.tables, one.full * one.positions) for one in found]
    return shrinking(units.roots, parts)


def stored(units: Units, whole_bytes: int = 0) -> Cost:
    """Numbers of parameters and buffers, shared ones once; or bytes, ``whole_bytes`` of the whole model.

    Of these, what the model stores and never reads stays.
    """
    once = {id(labels): path for path, labels in reversed(list(units.weights.items()))}
    parts: list[tuple[Sequence[Tensor], float]] = []
    for path in once.values():
        labels = units.weights[path]
        each = tensor_at(units.trace.graph, path).element_size() if whole_bytes else 1
        parts.append((labels.planes, float(math.prod(labels.shape) * each)))
    if whole_bytes:
        parts.append(((), whole_bytes - sum(part for _, part in parts)))
    return shrinking(units.roots, parts)


def shrinking(roots: Tensor, parts: Sequence[tuple[Sequence[Tensor], float]]) -> Cost:
    """The sum of (tables, whole): each whole times the share that stays of each of its tables."""
    tables = {id(table): table for own, _ in parts for table in own}
    place = {key: i for i, key in enumerate(tables)}
    most = max((len(own) for own, _ in parts), default=0)
    where = np.full((len(parts), most), len(tables))  # the last stands for a table that stays
    for number, (own, _) in enumerate(parts):
        where[number, : len(own)] = [place[id(table)] for table in own]
    whole = np.array([one for _, one in parts], np.float64)
    sizes = np.array([table.numel() for table in tables.values()], np.float64)

    def of(gone: Floats) -> float:
        stays = np.append(1 - gone / sizes, 1.0)
        return float(stays[where].prod(1) @ whole)

    return Cost(roots, list(tables.values()), of)


def units_left(units: Units, groups: Collection[Group]) -> Cost:
    """Units of these groups, with all that goes with them."""
    members = torch.tensor(sorted(frozenset().union(*(group.members for group in groups))))
    return Cost(units.roots, [members], lambda gone: float(len(members) - gone[0]))


@dataclass(frozen=True)
class Goal:
    """value: of the option ``name``: a share of ``cost`` that stays, or goes (ratio), or bytes."""

    name: str
    value: float | str
    cost: Cost

    @property
    def in_bytes(self) -> bool:
        return self.name == "size" and (isinstance(self.value, str) or self.value >= 1)

    def limit(self, part: float) -> float:
        """What may be left after this part of the way; Unsupported where there is nothing to do."""
        whole = self.cost.without(())
        return whole * (1 - part * (1 - self.share(whole)))

    def share(self, whole: float) -> float:
        if self.name == "ratio":
            return 1 - float(self.value)
        if not self.in_bytes:
            return float(self.value)
        wanted = bytes_in(self.value)
        if wanted >= whole:
            why = f"its stored numbers are {bytes_text(whole)}"
            raise Unsupported(f"the original is within {bytes_text(wanted)} already", why=why)
        return wanted / whole

    def missed(self, removed: Collection[int], limit: float) -> dict[str, str]:
        """How far it went where no more could go; Unsupported where bytes were asked."""
        left, whole = self.cost.without(removed), self.cost.without(())
        if left <= limit:
            return {}
        reach = f"{left / whole:.1%} stay when all went that may go, and {limit / whole:.1%} were asked"
        if self.in_bytes:
            raise Unsupported(f"no widths were found that take {bytes_text(limit)}", why=reach)
        return {f"the goal {self.name}": reach}


def sibling(groups: Collection[Group], cost: Cost, most: float) -> list[float]:
    """The dense network of the same form that costs at most ``most``: the share of every width, and its cost.

    Empty where no share does.
    """
    for percent in range(99, 0, -1):
        counts = [(group, round((100 - percent) / 100 * len(group.units))) for group in groups]
        removed = {
            part for group, count in counts for unit in group.units[:count] for part in group.parts(unit)
        }
        if (found := cost.without(removed)) <= most:
            return [percent / 100, found]
    return []


def goal_of(name: str, value: float | str, groups: Collection[Group], of: tuple[Units, int]) -> Goal:
    """of: the units and the bytes of the model."""
    units, whole_bytes = of
    if name == "ratio":
        return Goal(name, value, units_left(units, groups))
    return Goal(name, value, macs(units) if name == "macs" else stored(units, whole_bytes * (name == "size")))


def bytes_in(size: float | str) -> int:
    """Raises UsageError for what is neither a share nor bytes."""
    found = parse_bytes(size) if isinstance(size, str) else size
    if found < 1 or found != int(found):
        raise UsageError(
            f"prune_channels:size must be a share between 0 and 1, or bytes; got {size}", fix="0.5, or 200kB"
        )
    return int(found)


def bytes_text(size_bytes: float) -> str:
    return f"{size_bytes / 1000:,.1f} kB"
