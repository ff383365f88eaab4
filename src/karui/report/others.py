"""Why not the others: every other candidate in one group, with the number that put it there."""

from __future__ import annotations

from karui.report import fields, words
from karui.report.said import Part, Said, allowed, beats, cost, loss, objective, part, ratio, screened
from karui.report.view import Quality, Run, Trial

GROUPS = {
    "unconfirmed": "Not borne out by samples that the search never saw",
    "over": "Over the accuracy budget",
    "undecided": "Undecided, too few samples",
    "limits": "Over a limit on size or latency",
    "slower": "Slower than the original and not smaller",
    "slower_same": "Slower than FP32 in the same runtime",
    "behind": "Inside the budget, and surely behind the one chosen",
    "level": "Inside the budget, and not surely behind the one chosen",
    "no_gain": "Inside the budget, and not chosen",
    "untimed": "Inside the budget, and not timed on this machine",
    "failed": "Failed",
    "rejected": "Not kept",
    "unfinished": "No verdict was reached",
    "missing": "Not installed",
    "refused": "Refused before anything was built",
    "screened": "Screened with a part of the training and of the data, and never measured",
    "farther": "Left out: they go farther than one that is over the budget",
    "stopped": "Not tried, as the run had stopped",
}


def others(run: Run, subject: Trial | None) -> list[Part]:
    """The groups that have members, in order; within a group the best of the objective first."""
    left = [trial for trial in run.trials if all(trial is not t for t in (subject, run.baseline, run.best))]
    costs = {trial.id: cost(run, trial) for trial in left}
    left.sort(key=lambda trial: (costs[trial.id] is None, costs[trial.id] or 0.0))
    found = [fate(run, trial) for trial in left]
    found += [refusal(run, item) for item in run.refused]
    groups = {key: [one for one in found if one.fact == key] for key in GROUPS}
    return [part(key, title(run, key), said) for key, said in groups.items() if said]


def fate(run: Run, trial: Trial) -> Said:
    """The group of a trial, and why it is there."""
    group = failed_group(run, trial) or kept_group(run, trial)
    return Said(group, text(run, trial, group), recipe=trial.recipe)


def failed_group(run: Run, trial: Trial) -> str:
    """What forbids it; empty for a trial that may be shipped."""
    if trial.status == "failed":
        return "failed"
    if trial.status not in ("kept", "rejected"):
        return "unfinished"
    if look(run, trial) not in ("", "within", "baseline"):
        return "unconfirmed"
    if trial.quality and trial.quality.verdict in ("over", "undecided"):
        return trial.quality.verdict
    return "" if trial.status == "kept" else rejected_group(run, trial)


def rejected_group(run: Run, trial: Trial) -> str:
    """For what neither accuracy nor unseen samples forbid."""
    if limit(run, trial):
        return "limits"
    if trial.speedup and trial.speedup.slower:
        return "slower"
    return "slower_same" if trial.same_runtime and trial.same_runtime.slower else "rejected"


def kept_group(run: Run, trial: Trial) -> str:
    if trial.speedup is None and trial.p50_s is None:
        return "untimed"
    if objective(run) == "latency" and trial.same_runtime and trial.same_runtime.slower:
        return "slower_same"
    if run.best is None:
        return "no_gain"
    return "behind" if beats(run, run.best, trial) else "level"


def look(run: Run, trial: Trial) -> str:
    """The verdict on the confirmation split; empty when it was not judged there."""
    found = (
        entry for entry in fields.objects(run.data, "confirm", "looks") if entry.get("trial") == trial.id
    )
    return next((fields.text(entry, "verdict") for entry in found), "")


def limit(run: Run, trial: Trial) -> str:
    """The limit that it breaks, in words."""
    size, latency = run.budget.max_size_bytes, run.budget.max_latency_s
    if size is not None and trial.size_bytes is not None and trial.size_bytes > size:
        return f"{words.size(trial.size_bytes)} on disk, {words.size(size)} allowed"
    if latency is not None and trial.p50_s is not None and trial.p50_s > latency:
        unit = words.time_unit([trial.p50_s, latency])
        return f"{unit(trial.p50_s)} a call, {unit.number_short(latency)} {unit.name} allowed"
    return ""


def text(run: Run, trial: Trial, group: str) -> str:
    if group in ("over", "undecided") and trial.quality:
        return judged(run, trial.quality)
    told = {
        "limits": limit(run, trial),
        "unconfirmed": f"{look(run, trial)} there",
        "slower_same": f"{ratio(trial.same_runtime)} of that; {against_original(trial)}",
        "slower": against_original(trial),
    } | dict.fromkeys(("behind", "level", "no_gain"), standing(run, trial))
    if group in told:
        return told[group]
    log = f" (log: {fields.text(trial.data, 'log')})" if group == "failed" and trial.data.get("log") else ""
    return (fields.clip(trial.reason, 300) or "no reason was recorded") + log


def judged(run: Run, quality: Quality) -> str:
    limit = f", {allowed(run)}" if allowed(run) else ""
    found = f"{loss(run, quality)}{limit}"
    if quality.verdict != "undecided":
        return found
    if quality.more_samples:
        return f"{found}; about {quality.more_samples:,} more samples would settle it"
    return found


def standing(run: Run, trial: Trial) -> str:
    """What the objective counts."""
    return against_original(trial) if objective(run) == "latency" else words.size(cost(run, trial))


def against_original(trial: Trial) -> str:
    return f"{ratio(trial.speedup) or words.NONE} against the original"


def title(run: Run, key: str) -> str:
    """With what the one chosen has, where the group is measured by it."""
    if key not in ("behind", "level") or run.best is None:
        return GROUPS[key]
    return f"{GROUPS[key]} ({standing(run, run.best).removesuffix(' against the original')})"


# --- what was not tried


def refusal(run: Run, item: fields.Json) -> Said:
    name = fields.text(item, "recipe") or fields.text(item, "runtime") or "?"
    reason = fields.clip(fields.text(item, "reason"), 300)
    needed = remedy(reason)
    command = needed if needed.startswith("pip install ") and " and " not in needed else ""
    seen = screened(run, item)
    told = (needed or reason or "no reason was recorded") + (f" ({seen})" if seen else "")
    return Said(refusal_group(reason), told, name, command)


def refusal_group(reason: str) -> str:
    if reason.startswith("not installed"):
        return "missing"
    if reason.startswith("screened"):
        return "screened"
    if reason.startswith("goes farther than "):
        return "farther"
    return "stopped" if reason == "the time was up" or " met the goal of " in reason else "refused"


def remedy(reason: str) -> str:
    """What is missing, of: not installed: pip install 'karui[x]'; several things are joined by "and"."""
    return reason.partition("not installed: ")[2]
