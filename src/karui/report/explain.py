"""A finished run in words: why this one, what each step brought, why not the others, what to try next.

Every sentence stands on facts of the result document; where they are missing, it is not said.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from karui.errors import UsageError
from karui.report import fields
from karui.report.advice import advice
from karui.report.fields import Json
from karui.report.others import GROUPS, fate, others, refusal
from karui.report.said import Part, parsed, part
from karui.report.text import wrap
from karui.report.view import Run, Trial, read
from karui.report.why import brought, numbers, runs

SCHEMA = "karui.explain/1"
BEST = "best"
LONGEST = 72  # letters of a recipe in a list
SHOWN = 6  # lines of a group; the table and the JSON have them all
INDENT = "  "


def explain(result: Json, name: str = BEST) -> dict[str, Any]:
    """Facts in words about one candidate: a recipe, an id, or ``best``, with the others and advice.

    Raises UsageError for a name that the run does not have.
    """
    run = read(result)
    subject = wanted(run, name)
    trial = subject if isinstance(subject, Trial) else None
    role = kind(run, subject)
    parts = [became(run, subject)] if subject and role not in ("best", "original") else []
    parts += [numbers(run, trial), brought(run, trial), runs(run, trial)] if trial else []
    parts += [*others(run, trial), advice(run)] if name == BEST or trial is run.best else []
    return {
        "schema": SCHEMA,
        "headline": run.headline,
        "recipe": trial.recipe if trial else fields.text(subject, "recipe") or None,
        "id": trial.id if trial else None,
        "role": role,
        "parts": [asdict(one) for one in parts if one.said],
    }


def wanted(run: Run, name: str) -> Trial | Json | None:
    """A trial, or an entry of what was not tried; None for the best of a run that measured nothing."""
    if name == BEST:
        return run.shown or run.baseline
    recipe = str(parsed(name) or name)
    for trial in run.trials:
        if trial.id == name or trial.recipe in (name, recipe):
            return trial
    for item in run.refused:
        if fields.text(item, "recipe") in (name, recipe):
            return item
    raise UsageError(f"the run has no recipe {name!r}", fix=f"one of: {', '.join(close(run, name))}")


def close(run: Run, name: str, most: int = 5) -> list[str]:
    """Names like it, else the first ones, and ``best``."""
    ids = [trial.id for trial in run.trials]
    recipes = [trial.recipe for trial in run.trials] + [fields.text(item, "recipe") for item in run.refused]
    near = difflib.get_close_matches(name, [*recipes, *ids], most, cutoff=0.5)
    return near or [BEST, *recipes[:most]]


def kind(run: Run, subject: Trial | Json | None) -> str:
    """best, best effort, original, candidate, refused or nothing."""
    if not isinstance(subject, Trial):
        return "refused" if subject else "nothing"
    named = {"best": run.best, "original": run.baseline, "best effort": run.best_effort}
    return next((word for word, trial in named.items() if trial is subject), "candidate")


def became(run: Run, subject: Trial | Json) -> Part:
    """What came of one that was not chosen."""
    said = fate(run, subject) if isinstance(subject, Trial) else refusal(run, subject)
    return part("became", GROUPS[said.fact], [said])


# --- as text


def text(facts: Json, width: int | None = None) -> str:
    """Lines of at most ``width``; commands are never broken."""
    head, role = fields.text(facts, "recipe"), fields.text(facts, "role")
    lines = wrap(fields.text(facts, "headline"), width)
    lines += ["", *wrap(f"{head} ({role})", width)] if head else []
    previous = ""
    for one in fields.objects(facts, "parts"):
        grouped = fields.text(one, "key") in GROUPS
        if grouped and not previous:
            lines += ["", "Why not the others"]
        previous = "others" if grouped else ""
        lines += ["", *wrap(fields.text(one, "title"), width)] if not grouped else []
        lines += group(one, width) if grouped else list(sentences(one, width))
    return "\n".join(lines) + "\n"


def sentences(one: Json, width: int | None) -> Iterator[str]:
    for said in fields.objects(one, "said"):
        yield from bullet(capital(fields.text(said, "text")), width, INDENT)
        if command := fields.text(said, "command"):
            option = fields.text(said, "option")
            fits = width is None or len(command) + len(INDENT * 3) <= width or not option
            yield f"{INDENT * 3}{command if fits else f'the same call with {option}'}"


def group(one: Json, width: int | None) -> list[str]:
    """Recipes with the same reason share a line."""
    found: dict[str, list[str]] = {}
    for said in fields.objects(one, "said"):
        found.setdefault(fields.text(said, "text"), []).append(fields.text(said, "recipe"))
    lines = wrap(f"{fields.text(one, 'title')}:", width, INDENT)
    for reason, recipes in list(found.items())[:SHOWN]:
        named = ", ".join(fields.clip_middle(recipe, LONGEST) for recipe in recipes)
        lines += bullet(f"{named}: {reason}", width, INDENT * 2)
    more = len(found) - SHOWN
    return lines + ([f"{INDENT * 2}- and {more} more (karui show lists all)"] if more > 0 else [])


def bullet(line: str, width: int | None, indent: str) -> list[str]:
    first, *rest = wrap(line, None if width is None else width - len(indent) - 2) or [""]
    return [f"{indent}- {first}", *(f"{indent}{INDENT}{line}" for line in rest)]


def capital(line: str) -> str:
    """Names of recipes keep their own form."""
    head = line.partition(" ")[0]
    return line if "@" in head or ":" in head or "=" in head else line[:1].upper() + line[1:]
