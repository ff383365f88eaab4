"""Times narrowed copies of a model in the runtime and precision of a recipe, for techniques that ask.

What was timed once on a host is remembered for good, in ``~/.cache/karui/latency.jsonl``: shares of the
original's latency by the model's structure and widths, never weights or data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

from karui.artifact import Artifact
from karui.bench.candidate import Candidate, Opened
from karui.bench.rounds import Pace, Rounds, session
from karui.errors import KaruiError
from karui.measurement import Ratio

if TYPE_CHECKING:
    from torch import nn

    from karui.recipe import Recipe

ORIGINAL = "original"
AT_ONCE = 6  # narrowed copies that are open side by side
QUICK = Pace(least=18, most=90, seconds=6.0, half_width=0.02, openings=3, most_openings=3)
CAREFUL = Pace(least=30, most=200, seconds=15.0, half_width=0.015, openings=5, most_openings=10)
MEMORY = "latency.jsonl"


class Bench(Protocol):
    """What a clock needs of the workshop: artifacts of models in a recipe's runtime, and their workers."""

    def artifact_of(self, model: nn.Module | None, recipe: Recipe, folder: Path) -> Artifact: ...

    def worker(self, artifact: Artifact) -> Candidate: ...


@final
class RuntimeClock:
    """``folder`` is for its artifacts and is removed by ``close``."""

    def __init__(
        self, bench: Bench, recipe: Recipe, folder: Path, facts: Mapping[str, Any], seed: int
    ) -> None:
        self.bench, self.folder, self.seed = bench, folder, seed
        self.recipe = dataclasses.replace(recipe, steps=())
        self.facts = {"recipe": str(self.recipe), **facts}
        self.made: dict[str, Artifact] = {}
        self.memory = cache_folder() / MEMORY

    def ratios(
        self, variants: Mapping[str, Callable[[], nn.Module]], careful: bool = False
    ) -> dict[str, Ratio]:
        """How many times faster than the original each variant is, by a name that tells its structure.

        One that cannot be built or fails is left out. ``careful`` takes about five times as long, and its
        intervals are about half as wide.
        """
        keys = {name: self.key(name, careful) for name in variants}
        known = remembered(self.memory)
        found = {name: known[key] for name, key in keys.items() if key in known}
        missing = [name for name in variants if name not in found]
        for start in range(0, len(missing), AT_ONCE):
            part = missing[start : start + AT_ONCE]
            timed = self.timed({name: variants[name] for name in part}, CAREFUL if careful else QUICK)
            remember(self.memory, {keys[name]: ratio for name, ratio in timed.items()})
            found |= timed
        return found

    def original_s(self) -> float:
        """Seconds of one call of the original, now."""
        rounds = self.session({ORIGINAL: self.original()}, QUICK)
        blocks = [block for opening in rounds.blocks_s[ORIGINAL] for block in opening]
        return sorted(blocks)[len(blocks) // 2]

    def key(self, name: str, careful: bool) -> str:
        text = json.dumps([self.facts, name, careful], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def timed(self, variants: Mapping[str, Callable[[], nn.Module]], pace: Pace) -> dict[str, Ratio]:
        artifacts = {ORIGINAL: self.original()}
        for number, (name, make) in enumerate(variants.items()):
            try:
                artifacts[name] = self.bench.artifact_of(make(), self.recipe, self.folder / str(number))
            except KaruiError:
                continue
        rounds = self.session(artifacts, pace)
        good = [name for name in artifacts if name != ORIGINAL and name not in rounds.failed]
        return {name: rounds.ratio(ORIGINAL, name, self.seed) for name in good}

    def original(self) -> Artifact:
        if ORIGINAL not in self.made:
            self.made[ORIGINAL] = self.bench.artifact_of(None, self.recipe, self.folder / ORIGINAL)
        return self.made[ORIGINAL]

    def session(self, artifacts: Mapping[str, Artifact], pace: Pace) -> Rounds:
        pairs = [(ORIGINAL, name) for name in artifacts if name != ORIGINAL]

        def fresh() -> dict[str, Candidate]:
            return {name: self.bench.worker(artifact) for name, artifact in artifacts.items()}

        with Opened() as opened:
            rounds = session(lambda: opened.again(fresh()), pairs, pace, self.seed)
        if ORIGINAL in rounds.failed:
            raise rounds.failed[ORIGINAL]
        return rounds

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "karui"


def remembered(path: Path) -> dict[str, Ratio]:
    """What lines of the file say; one that is torn or strange is left out."""
    found: dict[str, Ratio] = {}
    lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    for line in lines:
        try:
            key, ratio, low, high = json.loads(line)
            found[str(key)] = Ratio(float(ratio), float(low), float(high), "baseline")
        except (ValueError, TypeError):
            continue
    return found


def remember(path: Path, found: Mapping[str, Ratio]) -> None:
    """Add lines; a cache that cannot be written is done without."""
    text = "".join(json.dumps([key, r.ratio, r.low, r.high]) + "\n" for key, r in found.items())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return
