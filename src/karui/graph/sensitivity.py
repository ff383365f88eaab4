"""How much each group of units matters, measured once: what was found is kept, and not measured again.

Kept is the order in which a group's units go, and the damage after some of them are gone, each under a digest
of all that it depends on: weights, calibration data, the units themselves, versions. A run that was killed
goes on with it, and other goals for the same model begin with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from karui import host
from karui.graph.allocate import Curve, between, curve
from karui.graph.compensate import Held
from karui.graph.consumers import tensor_at
from karui.graph.importance import Statistics
from karui.graph.obs import obs_scores
from karui.graph.rerun import Rerun
from karui.graph.select import Ranked, nearest
from karui.graph.units import Units
from karui.graph.units.groups import Group

FILE = "sensitivity.jsonl"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)  # of a group, at which damage is measured


class Known:
    """Plain values by a digest, in a file that grows by a line for each; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / FILE
        self.values: dict[str, Any] = {}
        text = self.path.read_text(encoding="utf-8") if self.path and self.path.is_file() else ""
        self.start = "\n" if text and not text.endswith("\n") else ""
        for line in text.splitlines():
            with suppress(ValueError):  # a line that was being written when the run was killed
                self.values.update(json.loads(line))

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The value that is known, or a new one, which is then."""
        if key not in self.values:
            self.values[key] = make()
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"{self.start}{json.dumps({key: self.values[key]})}\n")
                self.start = ""
        return self.values[key]


def digest(*parts: Any) -> str:
    """Of tensors by their bytes, of anything else by its text."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            found.update(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(f"{part}\n".encode())
    return found.hexdigest()[:32]


@dataclass
class Sensitivity:
    """Of a model as it stands. told: group -> its measured curve, in one word.

    statistics: made when they are first needed.
    """

    units: Units
    data: Sequence[tuple[Tensor, ...]]
    held: Held
    known: Known
    statistics: Callable[[], Statistics]
    told: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.units.trace.graph
        stored = [tensor_at(graph, path) for path in sorted(self.units.weights)]
        flat = [tensor for batch in (*self.data, *self.held.inputs) for tensor in batch]
        self.start = digest(graph.code, host.versions(), self.units.classes.lenient, *stored, *flat)
        self.runs = Rerun(graph, self.held.inputs)

    def scores(self, group: Group, limit: int) -> Mapping[int, float]:
        """As ``obs_scores`` has them."""
        args = (self.units, self.units.trace.graph, group)
        key = digest(self.start, group.name, group.units, limit)
        found = self.known.once(
            key, lambda: sorted(obs_scores(*args, self.statistics(), self.data, limit).items())
        )
        return {int(unit): float(score) for unit, score in found}

    def curve(self, one: Ranked, allowed: Sequence[int]) -> Curve:
        """Damage at all ``allowed`` counts of bundles, measured at some of them."""
        tried = sorted({nearest(allowed, share * len(one.bundles)) for share in SHARES} | {0, max(allowed)})
        key = digest(self.start, one.group.name, [sorted(bundle) for bundle in one.bundles], tried)
        errors = self.known.once(key, lambda: self.measured(one, tried))
        found = Curve(one.group, one.bundles, tuple(tried), tuple(errors))
        self.told.setdefault(one.group.name, drawn(found, len(one.bundles)))
        return between(found, allowed)

    def measured(self, one: Ranked, counts: Sequence[int]) -> Sequence[float]:
        with torch.no_grad():
            found = curve(
                self.units, one.group, one.bundles, counts, self.statistics(), (self.runs, self.held)
            )
        return found.errors


def drawn(measured: Curve, bundles: int) -> str:
    """A curve in one word: share that is removed, and the damage, pair after pair."""
    pairs: Iterable[tuple[int, float]] = zip(measured.counts, measured.errors)
    return " ".join(f"{count / bundles:.2f}:{error:.3g}" for count, error in pairs)
