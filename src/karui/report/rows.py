"""The rows of the table, in words: what the terminal, Markdown and the page all show."""

from __future__ import annotations

from dataclasses import dataclass

from karui.report import fields, words
from karui.report.changes import summary
from karui.report.said import screened
from karui.report.view import Run, Speed, Trial

MARKS = {
    "best": "★",
    "baseline": "•",
    "kept": "✓",
    "effort": "☆",
    "undecided": "?",
    "slower": "✗",
    "over": "✗",
    "rejected": "✗",
    "failed": "!",
    "unfinished": "·",
    "refused": "∅",
}
WORDS = {
    "effort": "best effort",
    "slower": "slower here",
    "over": "over budget",
    "refused": "not tried",
}


@dataclass(frozen=True)
class Cell:
    """What to read first, what to read second, and what to sort by."""

    main: str
    note: str = ""
    key: float | None = None

    @property
    def line(self) -> str:
        return f"{self.main} {self.note}".strip()


EMPTY = Cell(words.NONE)


@dataclass(frozen=True)
class Row:
    """``tone`` is a key of MARKS; ``tags`` are further short verdicts worth seeing."""

    tone: str
    name: str
    detail: str
    size: Cell
    latency: Cell
    eager: Cell
    same: Cell
    score: Cell
    reason: str
    tags: tuple[str, ...] = ()
    trial: Trial | None = None

    @property
    def mark(self) -> str:
        return MARKS[self.tone]

    @property
    def verdict(self) -> str:
        return WORDS.get(self.tone, self.tone)

    @property
    def outcome(self) -> str:
        """The verdict, its tags and the reason, as one line."""
        head = ", ".join((self.verdict, *self.tags))
        return f"{head}: {self.reason}" if self.reason else head


def headers(run: Run) -> tuple[str, ...]:
    """The titles of the numbers' columns, size to score."""
    score = words.score_name(run) + (" %" if run.points else "")
    return "size", "latency p50", f"vs {against(run)}", "vs FP32, same runtime", score


def against(run: Run) -> str:
    """What speedups are compared with."""
    return "eager" if not run.baseline or "eager" in run.baseline.id else run.baseline.recipe


def rows(run: Run) -> list[Row]:
    """Baseline and best first, then kept, not kept and failed ones, fastest first; then refused."""
    unit = words.run_unit(run)
    tried = [row(run, trial, unit) for trial in run.trials]
    tried.sort(key=lambda r: (group(r), r.latency.key is None, r.latency.key or 0.0))
    return tried + refused(run)


def group(row: Row) -> int:
    groups = {"baseline": 0, "best": 1, "effort": 1, "kept": 2, "failed": 4}
    return groups.get(row.tone, 3)


def row(run: Run, trial: Trial, unit: words.TimeUnit) -> Row:
    kind = tone(run, trial)
    return Row(
        tone=kind,
        name=trial.recipe,
        detail="; ".join(
            part for part in (summary(trial), fields.text(trial.data, "executed", "detail")) if part
        ),
        size=size_cell(run, trial),
        latency=latency_cell(trial, unit),
        eager=speed_cell(trial.speedup),
        same=speed_cell(trial.same_runtime),
        score=score_cell(run, trial),
        reason=reason(trial, kind),
        tags=tags(run, trial, kind),
        trial=trial,
    )


def tone(run: Run, trial: Trial) -> str:
    if trial is run.best:
        return "best"
    if trial is run.baseline:
        return "baseline"
    if trial.status == "failed":
        return "failed"
    if trial is run.best_effort and run.best is None:
        return "effort"
    if trial.status == "rejected":
        return why_rejected(trial)
    return "kept" if trial.status == "kept" else "unfinished"


def why_rejected(trial: Trial) -> str:
    verdict = trial.quality.verdict if trial.quality else ""
    if verdict in ("over", "undecided"):
        return verdict
    return "slower" if trial.slower else "rejected"


def reason(trial: Trial, kind: str) -> str:
    """The reason without the verdict, where it repeats it."""
    verdict = WORDS.get(kind, kind)
    return fields.clip(trial.reason.removeprefix(f"{verdict}:").strip(), 300)


def tags(run: Run, trial: Trial, kind: str) -> tuple[str, ...]:
    """What the verdict alone would hide: a kept row that is slower, a slower one over budget."""
    found = []
    if trial.slower and kind not in ("slower", "baseline"):
        found.append(slower_words(run, trial))
    if kind == "effort" and trial.quality and trial.quality.verdict in ("over", "undecided"):
        found.append(WORDS.get(trial.quality.verdict, trial.quality.verdict))
    return tuple(found)


def slower_words(run: Run, trial: Trial) -> str:
    slower_than_all = trial.speedup is not None and trial.speedup.slower
    return "slower here" if slower_than_all else "slower here than FP32"


def size_cell(run: Run, trial: Trial) -> Cell:
    if trial.size_bytes is None:
        return EMPTY
    base = run.baseline.size_bytes if run.baseline else None
    note = words.ratio_words(trial.size_bytes / base) if base else ""
    return Cell(words.size(trial.size_bytes), note, trial.size_bytes)


def latency_cell(trial: Trial, unit: words.TimeUnit) -> Cell:
    if trial.p50_s is None:
        return EMPTY
    note = f"(p90 {unit.number(trial.p90_s)})" if trial.p90_s else ""
    return Cell(unit(trial.p50_s), note, trial.p50_s)


def speed_cell(value: Speed | None) -> Cell:
    main, note = words.speed(value)
    return Cell(main, note, value.ratio if value else None)


def score_cell(run: Run, trial: Trial) -> Cell:
    if trial.quality is None:
        return EMPTY
    value = trial.quality.value
    return Cell(words.score(run, value), words.change(run, trial.quality), value)


def refused(run: Run) -> list[Row]:
    return [
        Row(
            tone="refused",
            name=fields.text(item, "recipe") or fields.text(item, "runtime") or "?",
            detail="",
            size=EMPTY,
            latency=EMPTY,
            eager=EMPTY,
            same=EMPTY,
            score=EMPTY,
            reason=why_not(run, item),
        )
        for item in run.refused
    ]


def why_not(run: Run, item: fields.Json) -> str:
    reason, seen = fields.clip(fields.text(item, "reason"), 300), screened(run, item)
    return f"{reason} ({seen})" if seen else reason
