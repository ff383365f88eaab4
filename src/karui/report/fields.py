"""Reading a result that may miss anything: every field absent, null or of the wrong kind is fine.

All text is made one printable line here, so that a runtime's log can neither move a terminal's
cursor nor break an SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]


def at(data: Any, *path: str) -> Any:
    """The value at a path of keys, or None."""
    for key in path:
        if not isinstance(data, Mapping):
            return None
        data = data.get(key)
    return data


def number(data: Any, *path: str) -> float | None:
    """A finite number, or None."""
    value = at(data, *path)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def whole(data: Any, *path: str) -> int | None:
    value = number(data, *path)
    return None if value is None else round(value)


def text(data: Any, *path: str) -> str:
    """A string on one printable line, empty when missing."""
    value = at(data, *path)
    return one_line(value) if isinstance(value, (str, int, float)) else ""


def listed(data: Any, *path: str) -> list[Any]:
    value = at(data, *path)
    return list(value) if isinstance(value, (list, tuple)) else []


def objects(data: Any, *path: str) -> list[Json]:
    """The mappings in a list; anything else in it is left out."""
    return [item for item in listed(data, *path) if isinstance(item, Mapping)]


def texts(data: Any, *path: str) -> list[str]:
    return [one_line(item) for item in listed(data, *path) if isinstance(item, (str, int, float))]


def numbers(data: Any, *path: str) -> list[float]:
    found = (number({"": item}, "") for item in listed(data, *path))
    return [value for value in found if value is not None]


def pairs(data: Any, *path: str) -> list[tuple[str, str]]:
    """The plain entries of a mapping, in its order."""
    value = at(data, *path)
    items = value.items() if isinstance(value, Mapping) else ()
    return [(one_line(key), text(value, key)) for key, _ in items if text(value, key)]


def one_line(value: object) -> str:
    words = "".join(c if c.isprintable() else " " for c in str(value)).split()
    return " ".join(words).encode("utf-8", "replace").decode("utf-8")


def clip(line: str, limit: int) -> str:
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def clip_middle(line: str, limit: int) -> str:
    """Both ends of a recipe tell more than its beginning does."""
    half = (limit - 1) // 2
    return line if len(line) <= limit else f"{line[: limit - 1 - half].rstrip()}…{line[-half:].lstrip()}"


def storable(value: Any) -> Any:
    """The same with what JSON has no word for (NaN, infinities) turned into null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(item) for item in value]
    return value
