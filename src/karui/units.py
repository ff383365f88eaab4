"""Units we count in. Names end in the unit; only ``report`` converts for people."""

from __future__ import annotations

import re

from karui.errors import UsageError

Seconds = float
Bytes = int

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
BYTES = {"b": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000}
BYTES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def parse_seconds(text: str) -> Seconds:
    """Read ``20m``, ``90s``, ``1.5ms`` or a bare number of seconds."""
    return parse_quantity(text, SECONDS, "s", "a time such as 20m, 90s or 1.5ms")


def parse_bytes(text: str) -> Bytes:
    """Read ``500kB``, ``2MB``, ``1MiB`` or a bare number of bytes."""
    return round(parse_quantity(text, BYTES, "b", "a size such as 500kB, 2MB or 1MiB"))


def parse_quantity(text: str, scale: dict[str, float] | dict[str, int], bare: str, kind: str) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    unit = (found[2].lower() or bare) if found else ""
    if not found or unit not in scale:
        raise UsageError(f"{text!r} is not {kind}", fix=f"units: {', '.join(scale)}")
    return float(found[1]) * scale[unit]
