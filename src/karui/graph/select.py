"""Which units go: bundles of units that can go together, in the order of their importance."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from karui.errors import UsageError
from karui.graph.cut.removal import Removal
from karui.graph.trace import ROOT
from karui.graph.units import Units
from karui.graph.units.groups import Group, Groups
from karui.graph.units.labels import varying

LEAST_SHARE = 0.05  # of a group that always stays


@dataclass(frozen=True)
class Ranked:
    """A group with the bundles that may leave it, in order; groups that only follow another have none."""

    group: Group
    bundles: tuple[frozenset[int], ...]


@dataclass
class Selection:
    """Collects what goes; every set it holds can be removed as it is."""

    units: Units
    groups: Groups
    removal: Removal
    gone: set[int] = field(default_factory=set)
    number_of: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.number_of = {unit: i for i, group in enumerate(self.groups.of) for unit in group.units}

    def ranked(self, group: Group, scores: Mapping[int, float], multiple_of: int = 1) -> Ranked:
        """Bundles of a group from the least important unit up."""
        gone, lost, bundles = set(self.gone), self.per_group(self.gone), []
        for unit in sorted(group.units, key=lambda label: scores.get(label, 0.0)):
            if unit in gone or not self.removal.may_go(unit):
                continue
            leaves = self.removal.closure({unit}, scores, gone)
            if leaves is None or self.empties(lost, leaves, multiple_of):
                continue
            bundles.append(frozenset(leaves))
            gone |= leaves
            lost.update(self.per_group(leaves))
        return Ranked(group, tuple(bundles))

    def per_group(self, gone: Collection[int]) -> Counter[int]:
        """How many units each group has lost, by its number."""
        return Counter(self.number_of[label] for label in gone if label in self.number_of)

    def empties(self, lost: Counter[int], leaves: Collection[int], multiple_of: int = 1) -> bool:
        """Whether too little would be left of a group."""
        for number, more in self.per_group(leaves).items():
            size = len(self.groups.of[number].units)
            least = 1 if self.groups.of[number].heads else min(multiple_of, size)
            if size - lost[number] - more < max(least, round(LEAST_SHARE * size)):
                return True
        return False

    def take(self, bundles: Sequence[frozenset[int]]) -> list[set[int]]:
        """Remove these bundles, each with what has to go with it now, but none that can no longer go."""
        taken, lost = [], self.per_group(self.gone)
        for bundle in bundles:
            leaves = self.removal.closure(bundle, {}, self.gone)
            if leaves and not self.empties(lost, leaves):
                taken.append(leaves)
                self.gone |= leaves
                lost.update(self.per_group(leaves))
        return taken

    def after(self, bundles: Sequence[frozenset[int]]) -> set[int]:
        """What would be gone if these were taken too."""
        trial = dataclasses.replace(self, gone=set(self.gone))
        trial.take(bundles)
        return trial.gone


def allowed_counts(ranked: Ranked, multiple_of: int) -> list[int]:
    """Numbers of bundles after which the group's width is a multiple; any number of heads will do."""
    if ranked.group.heads:
        return list(range(len(ranked.bundles) + 1))
    left, counts = len(ranked.group.units), [0]
    for number, bundle in enumerate(ranked.bundles, 1):
        left -= len(bundle.intersection(ranked.group.units))
        if left % multiple_of == 0:
            counts.append(number)
    return counts


def levels(one: Ranked, multiple_of: int, most: int) -> list[int]:
    """Counts of bundles to choose from: widths in even steps, at most ``most`` of them beside all."""
    allowed, step = allowed_counts(one, multiple_of), multiple_of
    while len(allowed) > most + 1:
        step *= 2
        fewer = allowed_counts(one, step)
        allowed = fewer if 1 < len(fewer) < len(allowed) else allowed[::2]
    return allowed


def nearest(counts: Sequence[int], wanted: float) -> int:
    return min(counts, key=lambda count: (abs(count - wanted), count))


def at_random(group: Group, seed: int) -> dict[int, float]:
    chance = random.Random(f"{seed} {group.name}")
    return {unit: chance.random() for unit in group.units}


def named_units(units: Units, words: Sequence[str], what: str) -> set[int]:
    """Classes of the outputs of modules: ``conv1`` for all, ``conv1:0,3`` for two of them."""
    found: set[int] = set()
    for word in words:
        path, _, numbers = word.partition(":")
        labels = outputs_named(units, path, what)
        try:
            picked = [int(number) for number in numbers.split(",")] if numbers else list(range(len(labels)))
            found |= {labels[i] for i in picked}
        except (ValueError, IndexError) as error:
            raise UsageError(
                f"{what}: {word!r} names no outputs of {path}",
                why=f"it has the outputs 0 to {len(labels) - 1}",
                fix="write name:0,3,5",
            ) from error
    return found


def outputs_named(units: Units, path: str, what: str) -> list[int]:
    weights = {name.removeprefix(ROOT): labels for name, labels in units.weights.items()}
    for name in (f"{path}.weight", path):
        if name in weights:
            for plane in weights[name].planes:
                if varying(plane) == (0,):
                    return [int(label) for label in units.classes.find(plane).reshape(-1).tolist()]
    known = sorted({name.rpartition(".")[0] or name for name in weights})
    raise UsageError(f"{what}: there is no layer {path!r}", fix=f"one of: {', '.join(known[:12])}")
