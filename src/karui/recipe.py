"""A Recipe: steps on the torch model, then numerics, on a runtime. It reads and prints as text.

    prune_channels:ratio=0.5 + int8[head=fp32]@onnxruntime
    fp32@torch_compile:mode=max-autotune

An option's value is ``true``, ``false``, ``none``, a number, a bare word, or JSON (lists, quoted
strings). Reading text touches no technique and no runtime; their rooms check names and options.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from karui.errors import UsageError
from karui.numerics import Numerics, parse_numerics

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.*/-]*|[0-9]+(?:\.[0-9]+)?[A-Za-z]+")  # also 200kB
NAME = re.compile(r"[a-z][a-z0-9_]*")
CONSTANTS = {"true": True, "false": False, "none": None}
Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Named:
    """A technique or a runtime by name, with options that differ from its defaults."""

    name: str
    options: Options = ()

    def __str__(self) -> str:
        options = ",".join(f"{key}={show(value)}" for key, value in self.options)
        return f"{self.name}:{options}" if options else self.name


@dataclass(frozen=True)
class Recipe:
    """Everything needed to make an artifact from a model."""

    steps: tuple[Named, ...] = ()
    numerics: Numerics = field(default_factory=Numerics)
    runtime: Named = Named("torch_eager")

    def __str__(self) -> str:
        return " + ".join([*map(str, self.steps), f"{self.numerics}@{self.runtime}"])

    @property
    def complexity(self) -> int:
        """How much there is to explain; ties in speed go to the lower one."""
        plain = self.numerics.default == "fp32"
        return 4 * len(self.steps) + 2 * (not plain) + len(self.numerics.rules)


def parse_recipe(text: str) -> Recipe:
    """The inverse of ``str(recipe)``."""
    *steps, last = split(text, "+")
    numerics, at, runtime = partition(last, "@")
    if not at:
        fix = "end with numerics@runtime, for example int8@onnxruntime"
        raise UsageError(f"recipe {text!r} names no runtime", fix=fix)
    return Recipe(tuple(map(parse_named, steps)), parse_numerics(numerics), parse_named(runtime))


def parse_named(text: str) -> Named:
    """Read ``name`` or ``name:option=value,option=value``."""
    name, _, rest = text.strip().partition(":")
    if not NAME.fullmatch(name):
        raise UsageError(f"{text.strip()!r} does not start with a name", fix="name:option=value")
    return Named(name, tuple(parse_option(part, text) for part in split(rest, ",") if part))


def parse_option(text: str, whole: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not NAME.fullmatch(key.strip()):
        raise UsageError(f"{text!r} in {whole.strip()!r} is not option=value")
    return key.strip(), parse_value(value.strip())


def parse_value(text: str) -> Any:
    """A Python value from its text; JSON lists become tuples."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if WORD.fullmatch(text):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        fix = 'quote it as JSON: "..."'
        raise UsageError(f"cannot read the value {text!r}", fix=fix) from None
    return freeze(value)


def freeze(value: Any) -> Any:
    return tuple(map(freeze, value)) if isinstance(value, list) else value


def show(value: Any) -> str:
    """The text of one option value; the inverse of ``parse_value``."""
    for word, constant in CONSTANTS.items():
        if value is constant:
            return word
    if isinstance(value, str) and WORD.fullmatch(value) and value not in CONSTANTS:
        return value
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("e+", "e") if isinstance(value, float) else text


def split(text: str, mark: str) -> list[str]:
    """Split at ``mark`` outside of quotes and brackets; parts are stripped."""
    parts, start = [], 0
    for position in positions(text, mark):
        parts.append(text[start:position].strip())
        start = position + 1
    return [*parts, text[start:].strip()]


def partition(text: str, mark: str) -> tuple[str, str, str]:
    found = positions(text, mark)
    return (text[: found[0]], mark, text[found[0] + 1 :]) if found else (text, "", "")


def positions(text: str, mark: str) -> list[int]:
    depth, quoted, escaped, found = 0, False, False, []
    for i, char in enumerate(text):
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            quoted = True
        elif char == mark and depth == 0:
            found.append(i)
        else:
            depth += (char in "[{") - (char in "]}")
    return found
