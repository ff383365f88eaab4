"""Why one candidate was chosen, what each of its steps brought, and what really executes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from karui.report import fields, words
from karui.report.changes import told
from karui.report.said import (
    Part,
    Said,
    allowed,
    cheaper,
    cost,
    count,
    joined,
    level_with,
    loss,
    objective,
    parsed,
    part,
    ratio,
    told_apart,
)
from karui.report.steps import Step, steps
from karui.report.view import Quality, Run, Speed, Trial

FIRST = {"latency": "fastest", "size": "smallest", "memory": "lightest in memory"}
CHANGES = {
    "": "gains",
    "slower": "costs time",
    "same": "makes no measurable difference",
    "few": "was timed in too few rounds for a verdict",
}
REASONS = 5
LOUD_DB = 20.0  # noise a tenth of the signal: the layers that rounding disturbs much


def numbers(run: Run, trial: Trial) -> Part:
    """Speed, size and score, each with its interval and against what it is compared with."""
    title = "Why this one" if trial is run.best else "What was measured"
    found = [
        *(place(run, trial) if trial is run.best else []),
        least_lost(run, trial),
        original(run, trial),
        compiled(run, trial),
        same_runtime(run, trial),
        size(run, trial),
        score(run, trial),
        *(confirmed(run) if trial is run.best else []),
    ]
    return part("numbers", title, found)


def place(run: Run, best: Trial) -> list[Said]:
    """First of those inside the budget; those that look better are named."""
    kept = [trial for trial in run.trials if trial.status == "kept" and trial is not run.baseline]
    kept = [trial for trial in kept if cost(run, trial) is not None]
    if len(kept) < 2:
        return [Said("only", "It is the only candidate inside the budget.")]
    fastest = objective(run) == "latency"
    ahead = [trial for trial in kept if cheaper(run, trial, best)]
    if ahead:
        return [tied(run, trial, best) for trial in ahead] if fastest else []
    near = len(level_with(run, best)) if fastest else 0
    tail = f", and not surely ahead of {near} of them" if near else ""
    head = f"It came out {FIRST[objective(run)]} of the {len(kept)} candidates inside the budget"
    return [Said("first_unsure" if near else "first", f"{head}{tail}.")]


def least_lost(run: Run, trial: Trial) -> Said | None:
    if trial is not run.best_effort or run.best:
        return None
    return Said("best_effort", "Nothing was chosen. Of what could be measured, this one lost least.")


def tied(run: Run, other: Trial, best: Trial) -> Said:
    simpler = parsed(best.recipe), parsed(other.recipe)
    known = simpler[0] and simpler[1] and simpler[0].complexity < simpler[1].complexity
    tail = ", and of two that cannot be told apart the simpler is taken" if known else ""
    text = f"{other.recipe} shows {ratio(other.speedup)} against the original{tail}."
    return Said("tied", text, recipe=other.recipe)


def original(run: Run, trial: Trial) -> Said | None:
    if trial is run.baseline:
        return Said(
            "original", f"It is the original: {words.run_unit(run)(trial.p50_s)} a call at the median."
        )
    if trial.speedup is None:
        why = fields.text(trial.data, "verification", "stands_in")
        return Said("untimed", f"It was not timed on this machine: {why}.") if why else None
    base, unit = run.baseline, words.run_unit(run)
    both = base and base.p50_s and trial.p50_s
    times = f": {unit(trial.p50_s)} a call at the median, {unit(base.p50_s)} before" if base and both else ""
    return compared("speed", trial.speedup, "the original", times)


def compared(fact: str, speed: Speed, other: str, times: str = "") -> Said:
    """Faster, slower, neither, and not timed often enough are facts of their own."""
    found = told_apart(speed)
    said = {
        "": f"It is {ratio(speed)} as fast as {other}",
        "slower": f"It is slower than {other}, {ratio(speed)}",
        "same": f"Against {other} there is no measurable difference, {ratio(speed)}",
        "few": f"Against {other} too few rounds were timed for a verdict, {ratio(speed)}",
    }
    return Said(f"{fact}_{found}" if found else fact, f"{said[found]}{times}.")


def compiled(run: Run, trial: Trial) -> Said | None:
    if trial.compiled is None or trial.compiled.verdict == "baseline" or trial is run.baseline:
        return None
    return compared("compiled", trial.compiled, "torch.compile")


def same_runtime(run: Run, trial: Trial) -> Said | None:
    """The comparison that shows what the precision and the steps alone are worth."""
    if trial.same_runtime is None or run.same_runtime_fp32(trial) is None:
        return None
    return compared("same_runtime", trial.same_runtime, f"FP32 in the same runtime ({trial.runtime})")


def size(run: Run, trial: Trial) -> Said | None:
    if trial.size_bytes is None:
        return None
    base = run.baseline.size_bytes if run.baseline and trial is not run.baseline else None
    share = (
        f", {words.ratio_words(trial.size_bytes / base)} of the original's {words.size(base)}" if base else ""
    )
    return Said("size", f"It takes {words.size(trial.size_bytes)} on disk{share}.")


def score(run: Run, trial: Trial) -> Said | None:
    """On the samples by which candidates are judged."""
    quality = trial.quality
    if quality is None or quality.value is None:
        return None
    samples = f" on the {words.count(quality.n)} samples that the search sees" if quality.n else ""
    value = f"{words.score_name(run)} is {words.full_score(run, quality.value)}{samples}"
    if trial is run.baseline or quality.drop is None:
        return Said("score", f"Its {value}.")
    return Said(*moved("score", run, quality, f"Its {value}"))


def moved(fact: str, run: Run, quality: Quality, head: str) -> tuple[str, str]:
    """The change, and what the budget says to it."""
    limit = f" ({allowed(run)})" if allowed(run) else ""
    if quality.drop == quality.low == quality.high == 0:
        return f"{fact}_identical", f"{head}: no outcome differs from the original's{limit}."
    return fact, f"{head}: it {loss(run, quality)}{limit}."


def confirmed(run: Run) -> list[Said]:
    """On samples kept for the end; how often they were looked at."""
    quality = run.confirmed
    if quality is None or quality.value is None:
        return []
    head = f"On {words.count(quality.n)} samples that the search never saw" if quality.n else "Confirmed"
    value = f"{head} its {words.score_name(run)} is {words.full_score(run, quality.value)}"
    return [Said(*moved("confirmed", run, quality, value)), *looks(run)]


def looks(run: Run) -> list[Said]:
    tried = fields.objects(run.data, "confirm", "looks")
    before = [look for look in tried if fields.text(look, "trial") != (run.best.id if run.best else "")]
    if not tried:
        return []
    if not before:
        return [Said("one_look", "It was the first candidate judged on them, so they were used once.")]
    names = joined(f"{name_of(run, look)} ({fields.text(look, 'verdict')})" for look in before)
    level = f"{100 * (1 - run.budget.confidence):.3g} % / {len(before) + 1}"
    return [Said("several_looks", f"Judged on them before it: {names}. So it had to hold at {level}.")]


def name_of(run: Run, look: fields.Json) -> str:
    name = fields.text(look, "trial")
    return next((trial.recipe for trial in run.trials if trial.id == name), name)


# --- what each step brought


def brought(run: Run, trial: Trial) -> Part:
    """From the original to the candidate, as measured; then what the steps did to the network."""
    unit = words.run_unit(run)
    middle = steps(run, trial)[1:-1]
    found = [taken(step, unit) for step in middle]
    accounts = fields.at(trial.data, "executed", "steps")
    if isinstance(accounts, Mapping):
        found += [account_of(name, account) for name, account in accounts.items()]
    return part("steps", "What each step brought", found)


def taken(step: Step, unit: words.TimeUnit) -> Said | None:
    if not step.before_s or not step.after_s:
        return None
    sure = (
        ratio(step.speed) or f"{words.ratio_words(step.before_s / step.after_s)}, with no interval of its own"
    )
    unsure = "slower" if step.after_s > step.before_s else ""
    found = told_apart(step.speed) if step.speed else unsure
    text = f"{cause(step.label)} {CHANGES[found]}: {unit(step.before_s)} to {unit(step.after_s)}, {sure}."
    return Said(f"step_{found}" if found else "step", text)


def cause(label: str) -> str:
    """The runtime onnxruntime; The precision int8; The steps ...; what is named together."""
    kinds = {"runtime": "The runtime", "numerics": "The precision", "steps": "The network after"}
    head, colon, rest = label.partition(": ")
    return f"{kinds[head]} {rest}" if colon and head in kinds else f"{label}, measured as one,"


def account_of(name: object, account: object) -> Said | None:
    if not isinstance(account, Mapping):
        return None
    if fields.number(account, "touched") == 0:
        return Said("untouched", f"{name} found nothing to change in this model.")
    facts = [f"{key} {value}" for key, value in told(account) if key != "result"]
    return Said("account", f"{name}: {'; '.join(facts)}.") if facts else None


# --- what really executes


def runs(run: Run, trial: Trial) -> Part:
    found = [
        kernels(trial),
        other_precision(trial),
        multiplications(trial),
        weights(trial),
        *fallbacks(trial),
        loud_layers(trial),
        verified(trial),
    ]
    return part("runs", "What really executes", found)


def kernels(trial: Trial) -> Said | None:
    detail = fields.text(trial.data, "executed", "detail")
    return Said("kernels", f"Kernels: {detail}.") if detail else None


def other_precision(trial: Trial) -> Said | None:
    """A runtime may store one precision and compute in another."""
    really = fields.text(trial.data, "executed", "precision")
    if not really or not trial.precision or really == trial.precision:
        return None
    return Said("other_precision", f"It computes in {really}, where {trial.precision} was asked for.")


def multiplications(trial: Trial) -> Said | None:
    share = fields.number(trial.data, "executed", "int8_macs")
    if share is not None:
        return Said("int8_macs", f"{words.percent(share)} of the multiplications run in INT8.")
    made, left = (fields.whole(trial.data, "executed", key) for key in ("int8_kernels", "float_kernels"))
    if not made or left is None:
        return None
    return Said("int8_kernels", f"{made} of {count(made + left, 'kernel')} that multiply are INT8.")


def weights(trial: Trial) -> Said | None:
    """The share of the weights that is stored in few bits."""
    shares = {bits: fields.number(trial.data, "executed", "weights", bits) or 0.0 for bits in ("4", "8")}
    told = [f"{words.percent(share)} in {bits} bits" for bits, share in shares.items() if share]
    return Said("weights", f"Of the weights, {joined(told)} are stored.") if told else None


def left_out(trial: Trial) -> str:
    """How those are called that stayed as they were."""
    if fields.at(trial.data, "executed", "weights"):
        return "Weights in float"
    return "In FP32" if trial.precision == "fp16" else "Not in INT8"


def fallbacks(trial: Trial) -> Iterator[Said]:
    """What stayed in float, by reason."""
    counts: Counter[tuple[str, str]] = Counter()
    for entry in fields.objects(trial.data, "executed", "fallback"):
        counts[fields.text(entry, "reason"), fields.text(entry, "op")] += fields.whole(entry, "count") or 1
    reasons = dict.fromkeys(reason for reason, _ in counts)
    for reason in list(reasons)[:REASONS]:
        operations = ", ".join(f"{op} x{n}" for (why, op), n in counts.items() if why == reason)
        yield Said("fallback", f"{left_out(trial)}: {operations}: {reason or 'no reason was given'}.")


def loud_layers(trial: Trial) -> Said | None:
    layers = fields.objects(trial.data, "executed", "layers")
    heard = [(fields.number(layer, "sqnr_db"), fields.text(layer, "layer")) for layer in layers]
    loud = sorted((noise, name) for noise, name in heard if noise is not None and noise < LOUD_DB)[:3]
    if not loud:
        return None
    names = joined(f"{name} ({noise:.0f} dB)" for noise, name in loud)
    return Said("loud_layers", f"Rounding disturbs these layers most: {names}, signal over noise.")


def verified(trial: Trial) -> Said | None:
    status, checks = trial.verification, trial.checks
    failed = [check for check in checks if check.ok is False]
    if failed:
        return Said("check_failed", f"A check failed: {failed[0].name}: {failed[0].detail}.")
    if not status:
        return None
    done = f", {count(len(checks), 'check')} passed" if checks else ""
    why = fields.text(trial.data, "verification", "stands_in")
    return Said("verified", f"{status[:1].upper()}{status[1:]}{done}{f': {why}' if why else ''}.")
