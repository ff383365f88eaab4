"""Optimal brain surgeon for units: what the layers that read a unit lose after the others have taken over.

From second moments of these layers' inputs (graph/gram); all readers of a unit count. Hassibi & Stork 1993.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from karui.graph.consumers import Consumer, matrix_of, stored_weights
from karui.graph.gram import inverse
from karui.graph.importance import Statistics, by_unit, energies, norms, readers_of
from karui.graph.units import Units
from karui.graph.units.groups import Group

STEP = 0.03  # share of the units left that is eliminated before costs are looked at again


def obs_scores(
    units: Units,
    graph: GraphModule,
    group: Group,
    found: Statistics,
    data: Sequence[tuple[Tensor, ...]],
    limit: int,
) -> Mapping[int, float]:
    """The place of each unit in ``obs_order``; energies or norms where no layer reads the units."""
    if not readers_of(group.members, found.consumers):
        shared = energies(units, graph, group, data)
        return shared if any(shared.values()) else norms(units, graph, group, 2.0, 0)
    order = obs_order(graph, group, found, limit)
    return {unit: float(place) for place, unit in enumerate(order)}


def obs_order(graph: GraphModule, group: Group, found: Statistics, limit: int) -> list[int]:
    """The units of a group in the order in which greedy elimination removes them.

    Costs are shares of the output energy of the layers that read the units, summed over these layers.
    Only the first ``limit`` are looked for one after the other.
    """
    readers = readers_of(group.members, found.consumers)
    states = [elimination(one, graph, found, group) for one in readers if one.groups == 1]
    extra = [by_unit(group, wanda(one, graph, found)) for one in readers if one.groups > 1]
    fixed = torch.tensor([sum(table[unit] for table in extra) for unit in group.units], dtype=torch.float64)
    left, order = torch.arange(len(group.units)), list[int]()
    while len(left):
        costs = fixed.clone()
        for state in states:
            state.add_costs(costs)
        ranked = left[costs[left].argsort(stable=True)]
        step = ranked[: max(1, round(STEP * len(left)))] if len(order) < limit else ranked
        order += [group.units[number] for number in step.tolist()]
        left = left[~torch.isin(left, step)]
        for state in states if len(left) else ():
            state.remove(step)
    return order


@dataclass(frozen=True)
class Blocks:
    """Units (by number in their group) with equally many columns: (units,), (units, k), and of the inverse
    at these, as it is now, (units, k, k).
    """

    numbers: Tensor
    columns: Tensor
    squares: Tensor


@dataclass
class Elimination:
    """A layer from which units leave one after the other; each time those that stay take over.

    The inverse of H without the columns S is H^-1 - V'V with V = L^-1 H^-1_S and LL' = H^-1_SS; kept of it
    are the blocks of the units. V grows in the first rows of ``inverse``, in place of those of H^-1 that
    are no longer needed.

    weights: (outputs, n). scale: the layer's output energy. columns: of each unit that is there. order: the
    column whose row stands in each row of ``inverse``; row: the inverse. gone: columns that have left.
    """

    weights: Tensor
    inverse: Tensor
    scale: float
    columns: dict[int, Tensor]
    order: Tensor
    row: Tensor
    gone: int = 0
    blocks: list[Blocks] = field(default_factory=list)

    def add_costs(self, costs: Tensor) -> None:
        """To ``costs`` (units,): of removing each unit next, as shares of the output energy."""
        for one in self.blocks:
            part = self.weights[:, one.columns].permute(1, 2, 0)
            narrow = one.columns.shape[1] == 1
            solved = part / one.squares if narrow else torch.linalg.solve(one.squares, part)
            costs[one.numbers] += (part * solved).sum((1, 2)) / self.scale

    def remove(self, numbers: Tensor) -> None:
        leave = [self.columns.pop(number) for number in numbers.tolist() if number in self.columns]
        if leave:
            going = torch.unique(torch.cat(leave))
            new = self.eliminate(going)
            self.blocks = [
                shrunk for one in self.blocks if len((shrunk := without(one, numbers, new)).numbers)
            ]
            self.drop_shared(going)

    def eliminate(self, going: Tensor) -> Tensor:
        """Gives the new rows of V."""
        known, end = self.inverse[: self.gone], self.gone + len(going)
        rows = self.inverse[self.row[going]].addmm_(known[:, going].T, known, alpha=-1)
        factor = torch.linalg.cholesky(rows[:, going])
        new: Tensor = torch.linalg.solve_triangular(factor, rows, upper=False)
        taken = torch.linalg.solve_triangular(factor, self.weights[:, going].T, upper=False)
        self.weights.addmm_(taken.T, new, alpha=-1)
        moved, free = self.order[self.gone : end], self.row[going]
        moved, free = moved[~torch.isin(moved, going)], free[free >= end]
        self.inverse[free] = self.inverse[self.row[moved]]
        self.order[free], self.row[moved] = moved, free
        self.inverse[self.gone : end], self.order[self.gone : end] = new, going
        self.row[going] = torch.arange(self.gone, end)
        self.gone = end
        return new

    def drop_shared(self, going: Tensor) -> None:
        """Columns of several units have left with the first of them."""
        left = {number: one[~torch.isin(one, going)] for number, one in self.columns.items()}
        if any(len(left[number]) < len(one) for number, one in self.columns.items()):
            self.columns = {number: one for number, one in left.items() if len(one)}
            self.blocks = self.blocks_of()

    def blocks_of(self) -> list[Blocks]:
        widths: dict[int, list[int]] = {}
        for number, one in self.columns.items():
            widths.setdefault(len(one), []).append(number)
        known, found = self.inverse[: self.gone], []
        for numbers in widths.values():
            columns = torch.stack([self.columns[number] for number in numbers])
            squares = self.inverse[self.row[columns].unsqueeze(2), columns.unsqueeze(1)]
            found.append(Blocks(torch.tensor(numbers), columns, squares - products(known, columns)))
        return found


def without(one: Blocks, numbers: Tensor, new: Tensor) -> Blocks:
    """After the units ``numbers`` have left, with the rows ``new`` of V."""
    stays = ~torch.isin(one.numbers, numbers)
    columns = one.columns[stays]
    return Blocks(one.numbers[stays], columns, one.squares[stays] - products(new, columns))


def products(V: Tensor, columns: Tensor) -> Tensor:
    """V'V at the columns of each unit, (units, k, k)."""
    part = V[:, columns].permute(1, 2, 0)
    return part @ part.transpose(1, 2)


def elimination(consumer: Consumer, graph: GraphModule, found: Statistics, group: Group) -> Elimination:
    moments = found.moments[consumer.weight]
    weights, H = stored_weights(graph, consumer, ones=moments.ones), moments.H[0]
    places: dict[int, list[int]] = {}
    for column, label in enumerate(consumer.columns[0].repeat_interleave(consumer.area(graph)).tolist()):
        places.setdefault(label, []).append(column)
    columns = {
        number: torch.tensor(sorted(column for part in group.parts(unit) for column in places.get(part, ())))
        for number, unit in enumerate(group.units)
        if not places.keys().isdisjoint(group.parts(unit))
    }
    scale = max(float((weights @ H * weights).sum()), 1e-12)
    made = Elimination(
        weights.clone(), inverse(H), scale, columns, torch.arange(len(H)), torch.arange(len(H))
    )
    made.blocks = made.blocks_of()
    return made


def wanda(consumer: Consumer, graph: GraphModule, found: Statistics) -> dict[int, float]:
    """For grouped layers: the energy each unit brings in, w^2 E[x^2] (Sun et al. 2023, arXiv:2306.11695)."""
    weight = matrix_of(graph, consumer).double()
    per = len(weight) // consumer.groups
    H = found.moments[consumer.weight].H
    energy: dict[int, float] = {}
    for group in range(consumer.groups):
        part = (
            weight[group * per : (group + 1) * per].square().sum(0) * H[group].diagonal()[: weight.shape[1]]
        )
        labels = consumer.columns[group].repeat_interleave(consumer.area(graph)).tolist()
        for label, value in zip(labels, part.tolist()):
            energy[label] = energy.get(label, 0.0) + value
    scale = max(sum(energy.values()), 1e-12)
    return {label: value / scale for label, value in energy.items()}
