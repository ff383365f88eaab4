"""The parts of the page, in reading order: verdict, table, pictures, checks, conditions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape

from karui.report import fields, tradeoffs, words
from karui.report.changes import changes
from karui.report.layers import layers
from karui.report.rows import Cell, Row, against, headers, rows
from karui.report.text import about
from karui.report.view import Check, Run, Trial

Pictures = Mapping[str, tuple[str, str]]
KICKERS: dict[int | None, str] = {
    0: "Within the budget",
    3: "Nothing met the budget",
    4: "A needed runtime is missing",
    5: "Too noisy to decide",
    130: "Interrupted, can be resumed",
}
INSIDE = re.compile(r", (?=[^\[\]]*\])")
# 軽い, drawn stroke by stroke: not every system has the letters.
MARK = """<svg class="mark" viewBox="-4 0 200 104" aria-hidden="true"><g>
<path d="M8 20H48M13 33V66H43V33ZM13 49.5H43M4 80H52M28 7V99"/>
<path d="M57 15H90C84 35 72 49 54 57M63 23C70 38 82 50 98 56M77 60V94M61 74H94M54 95H100"/>
<path d="M124 27C121 52 124 80 137 84C143 85 146 76 149 66M169 33C179 43 186 56 187 71"/></g></svg>"""


def esc(text: str) -> str:
    return escape(text, quote=True)


def solid(text: str) -> str:
    """Escaped, with intervals kept on one line."""
    return esc(INSIDE.sub(",\u00a0", text))


def body(run: Run, pictures: Pictures, note: str) -> str:
    parts = [
        masthead(run),
        "<main>",
        verdict(run),
        notices(run),
        candidates(run),
        tradeoffs.section(run),
        figures(run, pictures, note),
        changes(run),
        layers(run),
        verification(run),
        not_tried(run),
        conditions(run),
        reproduce(run),
        "</main>",
        footer(run),
    ]
    return "\n".join(part for part in parts if part)


# --- the top


def masthead(run: Run) -> str:
    task = [fields.text(run.data, "task", key) for key in ("name", "model")]
    about_task = " · ".join(dict.fromkeys(part for part in task if part))
    date = fields.text(run.data, "created").replace("T", " ").removesuffix("Z")[:16]
    return (
        f'<header class="masthead">{MARK}<b>karui</b><span>{esc(about_task)}</span>'
        f"<time>{esc(date)}</time></header>"
    )


def verdict(run: Run) -> str:
    kicker = KICKERS.get(run.exit_code, "Result") if run.exit_code or limited(run) else "Result"
    detail = fields.text(run.data, "verdict", "detail")
    lede = f'<p class="lede">{esc(detail)}</p>' if detail else ""
    return (
        f'<section class="verdict {"open" if run.exit_code else "good"}"><p class="kicker">{kicker}</p>'
        f"<h1>{esc(run.headline)}</h1>{lede}{key_figures(run)}"
        f'<p class="terms">{esc(about(run))}</p></section>'
    )


def limited(run: Run) -> bool:
    """Whether there was a budget, and something to meet it."""
    return run.best is not None and words.budget(run) != "none"


def key_figures(run: Run) -> str:
    trial = run.shown or run.baseline
    found = [score_figure(run, trial)]
    if trial:
        found += [latency_figure(run, trial), same_runtime_figure(run, trial), size_figure(run, trial)]
    items = "".join(figure for figure in found if figure)
    return f'<p class="subject">{subject(run)}</p><dl class="figures">{items}</dl>' if items else ""


def subject(run: Run) -> str:
    """Whose figures these are."""
    trial = run.shown or run.baseline
    name = f"<code>{breakable(trial.recipe)}</code>" if trial else ""
    if run.best is None and run.best_effort is not None:
        return f"Best effort, outside the budget: {name}"
    return name if run.best else f"The original: {name}"


def key_figure(name: str, value: str, note: str) -> str:
    number, _, unit = value.partition(" ")
    unit = f" <small>{esc(unit)}</small>" if unit else ""
    return f"<div><dt>{esc(name)}</dt><dd><b>{esc(number)}{unit}</b><span>{solid(note)}</span></dd></div>"


def score_figure(run: Run, trial: Trial | None) -> str:
    """The confirmed score where there is one, else the score that the search saw."""
    confirmed = run.confirmed
    quality = confirmed or (trial.quality if trial else None)
    if quality is None or quality.value is None:
        return ""
    name = f"{words.score_name(run)}, " + ("confirmed" if confirmed else "select split")
    seen = "samples the search never saw" if confirmed else "samples"
    on = f"{words.count(quality.n)} {seen}" if quality.n else ""
    change = words.change(run, quality)
    unit = f" {words.drop_unit(run)}" if run.points and change not in ("", "identical") else ""
    before = fields.number(run.data, "confirm", "baseline_value") if confirmed and run.labels else None
    was = "" if before is None else f"{words.full_score(run, before)} before"
    parts = [was, change + unit, on, "" if run.labels else "agreement with the original, no labels"]
    return key_figure(name, words.full_score(run, quality.value), "; ".join(p for p in parts if p))


def latency_figure(run: Run, trial: Trial) -> str:
    if trial.p50_s is None:
        return ""
    ratio, bounds = words.speed(trial.speedup)
    is_base = trial is run.baseline or trial.speedup is None
    note = "the original" if is_base else f"{ratio} {bounds} against {against(run)}"
    if trial.compiled and trial.compiled.verdict != "baseline" and not is_base:
        note += f"; {' '.join(words.speed(trial.compiled))} against torch.compile"
    return key_figure("latency, p50", words.run_unit(run)(trial.p50_s), note)


def same_runtime_figure(run: Run, trial: Trial) -> str:
    other = run.same_runtime_fp32(trial)
    if other is None or trial.same_runtime is None:
        return ""
    ratio, bounds = words.speed(trial.same_runtime)
    share = trial.same_runtime.verdict or "faster"
    return key_figure("against FP32, same runtime", ratio, f"{bounds} {share}".strip())


def size_figure(run: Run, trial: Trial) -> str:
    if trial.size_bytes is None:
        return ""
    base = run.baseline.size_bytes if run.baseline else None
    note = f"{words.ratio_words(trial.size_bytes / base)} of {words.size(base)}" if base else ""
    return key_figure("size on disk", words.size(trial.size_bytes), note)


def notices(run: Run) -> str:
    """Warnings stand before the numbers that they qualify."""
    found = fields.texts(run.data, "warnings") + fields.texts(run.data, "host", "warnings")
    items = "".join(f"<li>{esc(fields.clip(text, 400))}</li>" for text in found)
    return f'<section class="notices" aria-label="Warnings"><ul>{items}</ul></section>' if items else ""


# --- the table


def candidates(run: Run) -> str:
    found = [row for row in rows(run) if row.trial]
    names = ("candidate", *headers(run), "verdict")
    head = "".join(heading(i, name) for i, name in enumerate(names))
    lines = "\n".join(line(row, names) for row in found)
    return f"""<section id="table"><h2>Every candidate</h2>
<table class="candidates"><caption>{esc(legend(run))}</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{lines}
</tbody></table></section>"""


def heading(index: int, name: str) -> str:
    kind = "text" if index in (0, 6) else "number"
    return f'<th scope="col" class="{kind}">{esc(name)}</th>'


def legend(run: Run) -> str:
    better = "a minus is worse" if run.higher_is_better else "a plus is worse"
    change = f"change in {words.drop_unit(run)}, {better}" if run.points else f"change, {better}"
    return (
        f"Brackets hold 95 % intervals of paired, interleaved measurements. Size is on disk; x is "
        f"against the original. Score: {change}; judged on the select split."
    )


def line(row: Row, names: tuple[str, ...]) -> str:
    numbers = (row.size, row.latency, row.eager, row.same, row.score)
    cells = "".join(number_cell(c, name) for c, name in zip(numbers, names[1:6], strict=True))
    detail = f"<small>{esc(fields.clip(row.detail, 120))}</small>" if row.detail else ""
    tags = "".join(f'<span class="tag">{esc(tag)}</span>' for tag in row.tags)
    why = f"<small>{esc(row.reason)}</small>" if row.reason else ""
    return (
        f'<tr class="{row.tone}"><th scope="row"><code>{breakable(row.name)}</code>{detail}</th>'
        f'{cells}<td class="outcome"><span class="word"><i>{row.mark}</i> {esc(row.verdict)}</span>'
        f"{tags}{why}</td></tr>"
    )


def number_cell(cell: Cell, name: str) -> str:
    key = "" if cell.key is None else f' data-key="{cell.key!r}"'
    note = f"<small>{esc(cell.note)}</small>" if cell.note else ""
    empty = " empty" if cell.main == words.NONE else ""
    label = esc(name)
    return f'<td class="number{empty}" data-label="{label}"{key}>{esc(cell.main)}{note}</td>'


def breakable(name: str) -> str:
    """Recipes are long words; let them break before what carries meaning."""
    return esc(name).replace("@", "<wbr>@").replace("_", "_<wbr>").replace("[", "<wbr>[")


# --- pictures


def figures(run: Run, pictures: Pictures, note: str) -> str:
    if note:
        return f'<section><p class="missing">{esc(note)}</p></section>'
    captions = {
        "pareto": ("Quality against latency", pareto_caption(run)),
        "steps": ("Where the gain comes from", steps_caption(run)),
        "latency": ("Latency, call by call", "Every thin mark is one timed call."),
        "classes": ("What changed, class by class", classes_caption(run)),
    }
    made = [figure(*captions[name], pictures[name]) for name in captions if name in pictures]
    return "\n".join(made)


def figure(title: str, caption: str, drawn: tuple[str, str]) -> str:
    wide, narrow = drawn
    return f"""<section><h2>{esc(title)}</h2><figure class="chart">
<div class="wide">{wide}</div><div class="narrow">{narrow}</div>
<figcaption>{esc(caption)}</figcaption></figure></section>"""


def pareto_caption(run: Run) -> str:
    up = "" if run.higher_is_better else " The score's axis is turned so that better is up."
    return (
        "Up and to the left is better. Bars are 95 % intervals on both axes; a dot's area is its "
        "size on disk. Blue dots are not beaten on both axes by any other; grey ones are; ringed in "
        f"red are over budget, and a triangle lies far below the picture.{up}"
    )


def steps_caption(run: Run) -> str:
    if run.best is None:
        return "For the best effort, which did not meet the budget. Brackets hold 95 % intervals."
    return "Each step as measured against the one before. Brackets hold 95 % intervals."


def classes_caption(run: Run) -> str:
    trial = run.shown
    found = trial.classes if trial else []
    which = f" The 16 of {len(found)} classes that changed most." if len(found) > 16 else ""
    sizes = [c.n for c in found if c.n]
    span = " to ".join(dict.fromkeys((str(min(sizes)), str(max(sizes))))) if sizes else ""
    few = f" Classes have {span} samples, so small changes may be chance." if span else ""
    return f"The original against {trial.recipe if trial else ''}, on the select split.{which}{few}"


# --- checks, refusals


def verification(run: Run) -> str:
    trial = run.shown
    failed = [t for t in run.trials if t is not trial and any(c.ok is False for c in t.checks)]
    tables = "".join(checks(t) for t in ([trial] if trial else []) + failed if t.checks or t.verification)
    return f"<section><h2>Verification</h2>{tables}</section>" if tables else ""


def checks(trial: Trial) -> str:
    lines = "".join(map(check_line, trial.checks))
    status = f": {esc(trial.verification)}" if trial.verification else ""
    return f"<h3><code>{breakable(trial.recipe)}</code>{status}</h3><ul class=checks>{lines}</ul>"


def check_line(check: Check) -> str:
    mark, tone = {True: ("✓", "pass"), False: ("✗", "fail"), None: ("·", "open")}[check.ok]
    detail = f"<small>{esc(fields.clip(check.detail, 300))}</small>" if check.detail else ""
    return f"<li class={tone}><i>{mark}</i><span>{esc(check.name)}{detail}</span></li>"


def not_tried(run: Run) -> str:
    found = [row for row in rows(run) if row.tone == "refused"]
    if not found:
        return ""
    items = "".join(f"<dt><code>{breakable(r.name)}</code></dt><dd>{esc(r.reason)}</dd>" for r in found)
    return (
        "<section><h2>Not tried</h2><p>These were refused, or screened out, before they cost a trial.</p>"
        f"<dl class=pairs>{items}</dl></section>"
    )


# --- conditions


def conditions(run: Run) -> str:
    lists = [("Machine", machine(run)), ("Task", task(run)), ("Versions", versions(run))]
    columns = "".join(f"<div><h3>{name}</h3>{pairs(found)}</div>" for name, found in lists if found)
    said = fields.texts(run.data, "warnings")
    left = [text for text in fields.texts(run.data, "task", "notes") if text not in said]
    notes = "".join(f"<li>{esc(text)}</li>" for text in left)
    remarks = f"<ul class=remarks>{notes}</ul>" if notes else ""
    inside = f'<div class="columns">{columns}</div>{remarks}' if columns or remarks else ""
    return f"<section><h2>Conditions</h2>{inside}</section>" if inside else ""


def pairs(found: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{esc(name)}</dt><dd>{esc(value)}</dd>" for name, value in found)
    return f"<dl class=pairs>{items}</dl>"


def stated(found: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in found if value and value != words.NONE]


def machine(run: Run) -> list[tuple[str, str]]:
    host = fields.at(run.data, "host")
    load = " ".join(f"{x:.2f}" for x in fields.numbers(host, "load_average"))
    noise = [(f"noise: {name}", value) for name, value in fields.pairs(host, "noise")]
    return stated([
        ("timed on", fields.text(run.data, "target", "on")),
        ("processor", fields.text(host, "cpu")),
        ("cores", fields.text(host, "cores")),
        ("instructions", ", ".join(fields.texts(host, "flags"))),
        ("memory", words.size(fields.number(host, "memory_bytes"))),
        ("system", fields.text(host, "os")),
        ("compiler", fields.text(host, "compiler")),
        ("governor", fields.text(host, "governor")),
        ("load average", load),
        *noise,
    ])  # fmt: skip


def task(run: Run) -> list[tuple[str, str]]:
    facts = fields.at(run.data, "task")
    splits = ", ".join(f"{name} {n}" for name, n in fields.pairs(facts, "splits"))
    sparsity = fields.number(facts, "sparsity")
    return stated([
        ("model", fields.text(facts, "model")),
        ("parameters", words.count(fields.number(facts, "parameters"))),
        ("MACs a sample", words.big_count(fields.number(facts, "macs"))),
        ("size", words.size(fields.number(facts, "size_bytes"))),
        ("sparsity", words.percent(sparsity) if sparsity else ""),
        ("inputs", "; ".join(map(tensor, fields.objects(facts, "inputs")))),
        ("outputs", "; ".join(map(tensor, fields.objects(facts, "outputs")))),
        ("score", words.score_name(run) if fields.text(facts, "score") else ""),
        ("samples", splits),
    ])  # fmt: skip


def tensor(spec: fields.Json) -> str:
    """name float32 (n, 1, 28, 28); n is the batch."""
    sizes = ("n" if size is None else fields.one_line(size) for size in fields.listed(spec, "shape"))
    return f"{fields.text(spec, 'name')} {fields.text(spec, 'dtype')} ({', '.join(sizes)})"


def versions(run: Run) -> list[tuple[str, str]]:
    own = {"karui": fields.text(run.data, "karui"), "Python": fields.text(run.data, "host", "python")}
    return stated((own | dict(fields.pairs(run.data, "host", "versions"))).items())


def reproduce(run: Run) -> str:
    command = fields.text(run.data, "command")
    seed, took = fields.text(run.data, "seed"), fields.number(run.data, "duration_s")
    facts = [f"Seed {seed}" if seed else "", f"took {words.duration(took)}" if took else ""]
    said = ", ".join(fact for fact in facts if fact)
    unbroken = " ".join(f"<span>{esc(word)}</span>" for word in command.split())
    shown = f"<pre><code>{unbroken}</code></pre>" if command else ""
    tail = f"<p>{esc(said[:1].upper() + said[1:])}.</p>" if said else ""
    return f"<section><h2>Reproduce</h2>{shown}{tail}</section>" if shown or tail else ""


def footer(run: Run) -> str:
    tool = f"karui {fields.text(run.data, 'karui')}".strip()
    return (
        f"<footer>Measured by {esc(tool)}. The whole result stands in this file as JSON, "
        "in the element <code>#result</code>, and beside it as <code>result.json</code>.</footer>"
    )
