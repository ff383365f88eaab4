"""What was measured: raw samples, ratios with intervals, quality with a verdict.

Raw timings are kept in the order taken; statistics are derived from them elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from karui.units import Bytes, Seconds

Speed = Literal["faster", "slower", "no measurable difference", "baseline"]
Within = Literal["within", "over", "undecided", "baseline"]


@dataclass(frozen=True)
class Ratio:
    """How many times faster than ``against``: its median time over ours, per round.

    ``low`` and ``high`` bound the 95 % interval; above 1 is faster.
    """

    ratio: float
    low: float
    high: float
    verdict: Speed
    against: str = ""


@dataclass(frozen=True)
class Quality:
    """A score and how far it fell, on the same samples as the original.

    ``drop`` is positive when the candidate is worse, in the score's own unit (0.005 is half a
    point of top-1); ``low`` and ``high`` bound its 95 % interval. ``more_samples`` says how many
    further samples would probably settle an undecided verdict.
    """

    value: float
    drop: float
    low: float
    high: float
    verdict: Within
    n: int
    agreement: float | None = None
    more_samples: int | None = None
    per_class: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Timing:
    """Latency of one call at the target's batch, and what loading cost.

    ``samples_s`` are seconds per call in the order taken; ``rounds_s`` holds each round's mean,
    in all ``openings`` of the artifact.
    """

    samples_s: tuple[Seconds, ...]
    rounds_s: tuple[Seconds, ...]
    load_s: Seconds
    first_call_s: Seconds
    peak_memory_bytes: Bytes
    openings: int = 1


@dataclass(frozen=True)
class Check:
    """One verification of an artifact and what it found."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """Status words are never merged: each says exactly what was done.

    stands_in: why a reference interpreter answered instead of the runtime; empty where it did not.
    """

    status: str  # "verified on runtime", "verified by reference", "rule-checked", "failed"
    checks: tuple[Check, ...] = ()
    stands_in: str = ""

    @property
    def failure(self) -> str:
        """The first failed check in words, or an empty string."""
        return next((f"{c.name}: {c.detail}" for c in self.checks if not c.ok), "")


@dataclass(frozen=True)
class Measurement:
    """Everything one artifact showed on its real runtime, in processes of its own."""

    size_bytes: Bytes
    size_compressed_bytes: Bytes
    verification: Verification
    quality: Quality | None = None
    timing: Timing | None = None
    speedup: Ratio | None = None
    speedup_compiled: Ratio | None = None
    speedup_same_runtime: Ratio | None = None
    executed: Mapping[str, Any] = field(default_factory=dict)
    build_s: Seconds = 0.0


@dataclass(frozen=True)
class Trial:
    """One recipe and what came of it.

    status: "kept" (verified, inside every limit), "rejected" (measured, but not to be shipped) or
    "failed" (it never gave a usable artifact). ``artifact`` and ``log`` are relative to the run folder.
    """

    id: str
    recipe: str
    runtime: str
    precision: str
    status: str
    reason: str
    complexity: int = 0
    measurement: Measurement | None = None
    artifact: str | None = None
    log: str | None = None

    @property
    def kept(self) -> bool:
        return self.status == "kept"
