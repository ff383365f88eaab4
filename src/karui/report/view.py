"""The result as the report sees it: the same facts with names and types, nothing computed twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from karui.budget import CONFIDENCE
from karui.report import fields
from karui.report.fields import Json

SHARES = ("top1", "top5", "agreement")


@dataclass(frozen=True)
class Speed:
    """Times faster than ``against``, with a 95 % interval."""

    ratio: float
    low: float | None
    high: float | None
    verdict: str
    against: str

    @property
    def slower(self) -> bool:
        return self.verdict == "slower"


@dataclass(frozen=True)
class Quality:
    """``drop`` is positive when worse, in the score's own unit."""

    value: float | None
    drop: float | None
    low: float | None
    high: float | None
    verdict: str
    agreement: float | None
    n: int | None
    more_samples: int | None


@dataclass(frozen=True)
class ClassChange:
    name: str
    before: float
    after: float
    n: int | None


@dataclass(frozen=True)
class Check:
    """``ok`` is None when the check does not say."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Trial:
    id: str
    recipe: str
    runtime: str
    precision: str
    status: str
    reason: str
    size_bytes: float | None
    p50_s: float | None
    p90_s: float | None
    speedup: Speed | None
    compiled: Speed | None
    same_runtime: Speed | None
    quality: Quality | None
    data: Json

    @property
    def slower(self) -> Speed | None:
        """The comparison that found it slower, if any."""
        return next((s for s in (self.speedup, self.same_runtime) if s and s.slower), None)

    @property
    def samples_s(self) -> list[float]:
        return [s for s in fields.numbers(self.data, "samples_s") if s > 0]

    @property
    def classes(self) -> list[ClassChange]:
        found = map(class_change, fields.objects(self.data, "quality", "per_class"))
        return [change for change in found if change]

    @property
    def checks(self) -> list[Check]:
        return list(map(check, fields.objects(self.data, "verification", "checks")))

    @property
    def verification(self) -> str:
        return fields.text(self.data, "verification", "status")


@dataclass(frozen=True)
class Budget:
    """``allowed``: the largest drop, in the score's own unit; ``share``: of the original's score."""

    allowed: float | None
    share: float | None
    max_latency_s: float | None
    max_size_bytes: float | None
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class Run:
    """``points``: the score is a share of samples, so people read it in percent and points."""

    data: Json
    trials: tuple[Trial, ...]
    refused: tuple[Json, ...]
    baseline: Trial | None
    best: Trial | None
    best_effort: Trial | None
    budget: Budget
    score: str
    points: bool
    higher_is_better: bool

    @property
    def shown(self) -> Trial | None:
        """The trial that pictures are about: the best, else the best effort."""
        return self.best or self.best_effort

    @property
    def headline(self) -> str:
        return fields.text(self.data, "verdict", "headline") or "No verdict was reached"

    @property
    def exit_code(self) -> int | None:
        return fields.whole(self.data, "verdict", "exit_code")

    @property
    def confirmed(self) -> Quality | None:
        return quality(fields.at(self.data, "confirm", "quality"))

    @property
    def pareto(self) -> frozenset[str]:
        return frozenset(fields.texts(self.data, "pareto"))

    @property
    def labels(self) -> bool:
        """False when the original model's own answers stood in for labels."""
        return fields.at(self.data, "task", "labels") is not False and self.score != "agreement"

    def same_runtime_fp32(self, trial: Trial) -> Trial | None:
        """The FP32 trial that ``trial`` was compared with in its own runtime, if it is another."""
        against = trial.same_runtime.against if trial.same_runtime else ""
        found = find(self.trials, against)
        return found if found and found.id != trial.id else None

    def worsening(self, drop: float) -> float:
        """How the score moved: negative is worse when higher is better, positive when lower is."""
        return -drop if self.higher_is_better else drop


def read(result: Json) -> Run:
    """View a ``karui.result/1`` dict."""
    trials = tuple(map(trial, fields.objects(result, "trials")))
    baseline = find(trials, fields.text(result, "baseline"))
    score = fields.text(result, "task", "score") or "score"
    return Run(
        data=result,
        trials=trials,
        refused=tuple(fields.objects(result, "refused")),
        baseline=baseline,
        best=find(trials, fields.text(result, "best")),
        best_effort=find(trials, fields.text(result, "best_effort")),
        budget=budget(result, baseline),
        score=score,
        points=in_points(result, score),
        higher_is_better=fields.at(result, "task", "higher_is_better") is not False,
    )


def in_points(result: Json, score: str) -> bool:
    said = fields.at(result, "task", "share")
    return said if isinstance(said, bool) else score in SHARES


def budget(result: Json, baseline: Trial | None) -> Budget:
    """A drop of 100 points is no budget."""
    limit = fields.at(result, "budget")
    drop, relative = fields.number(limit, "max_drop"), fields.text(limit, "unit") == "relative"
    if drop is not None and drop >= 100 and not relative:
        drop = None
    base = baseline.quality.value if baseline and baseline.quality else None
    allowed = fields.number(limit, "allowed") if drop is not None else None
    if drop is not None and allowed is None and (base is not None or not relative):
        allowed = drop * abs(base or 0.0) if relative else drop / 100
    share = allowed / abs(base) if relative and allowed is not None and base else None
    latency, size = fields.number(limit, "max_latency_s"), fields.number(limit, "max_size_bytes")
    sure = fields.number(limit, "confidence") or CONFIDENCE
    return Budget(allowed, share, latency, size, sure)


def find(trials: Iterable[Trial], name: str) -> Trial | None:
    return next((t for t in trials if t.id == name), None) if name else None


def trial(data: Json) -> Trial:
    name = fields.text(data, "id")
    return Trial(
        id=name,
        recipe=fields.text(data, "recipe") or name or "?",
        runtime=fields.text(data, "runtime"),
        precision=fields.text(data, "precision"),
        status=fields.text(data, "status"),
        reason=fields.text(data, "reason"),
        size_bytes=fields.number(data, "size_bytes"),
        p50_s=positive(fields.number(data, "latency_s", "p50")),
        p90_s=positive(fields.number(data, "latency_s", "p90")),
        speedup=speed(fields.at(data, "speedup")),
        compiled=speed(fields.at(data, "speedup_compiled")),
        same_runtime=speed(fields.at(data, "speedup_same_runtime")),
        quality=quality(fields.at(data, "quality")),
        data=data,
    )


def positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None


def speed(data: Any) -> Speed | None:
    ratio = positive(fields.number(data, "ratio"))
    if ratio is None:
        return None
    low, high = positive(fields.number(data, "low")), positive(fields.number(data, "high"))
    return Speed(ratio, low, high, fields.text(data, "verdict"), fields.text(data, "against"))


def quality(data: Any) -> Quality | None:
    if not isinstance(data, Mapping):
        return None
    return Quality(
        fields.number(data, "value"),
        fields.number(data, "drop"),
        fields.number(data, "low"),
        fields.number(data, "high"),
        fields.text(data, "verdict"),
        fields.number(data, "agreement"),
        fields.whole(data, "n"),
        fields.whole(data, "more_samples"),
    )


def class_change(data: Json) -> ClassChange | None:
    before, after = fields.number(data, "before"), fields.number(data, "after")
    if before is None or after is None:
        return None
    return ClassChange(fields.text(data, "class") or "?", before, after, fields.whole(data, "n"))


def check(data: Json) -> Check:
    ok = data.get("ok")
    passed = ok if isinstance(ok, bool) else None
    return Check(fields.text(data, "name") or "check", passed, fields.text(data, "detail"))
