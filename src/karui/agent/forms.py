"""What may be said to an agent: each verb with exactly its fields. All else is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from karui.errors import UsageError

LONGEST_S, MOST_THREADS, MOST_BATCH = 86_400.0, 4096, 1 << 24
NAME_BYTES, DEEPEST = 255, 16
HASH = re.compile(r"[0-9a-f]{64}")
PART = re.compile(r"[^/\\]+")


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value <= LONGEST_S


def is_hash(value: Any) -> bool:
    return isinstance(value, str) and HASH.fullmatch(value) is not None


def is_name(value: Any) -> bool:
    """Whether it is the name of a file below a folder, on any system."""
    parts = value.split("/") if isinstance(value, str) else []
    return 0 < len(parts) <= DEEPEST and all(map(is_part, parts))


def is_part(part: str) -> bool:
    fits = part.isprintable() and len(part.encode()) <= NAME_BYTES
    return fits and PART.fullmatch(part) is not None and part not in (".", "..")


def is_files(value: Any) -> bool:
    """File names with the SHA-256 of each."""
    return isinstance(value, dict) and all(is_name(name) and is_hash(one) for name, one in value.items())


def is_list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def is_up_to(most: int) -> Callable[[Any], bool]:
    return lambda value: is_count(value) and 1 <= value <= most


def is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100 and value.isprintable()


def is_sized(value: Any) -> bool:
    """A hash and a number of bytes."""
    return isinstance(value, list) and len(value) == 2 and is_hash(value[0]) and is_count(value[1])


def is_message(value: Any) -> bool:
    return isinstance(value, dict)


Form = Mapping[str, Callable[[Any], bool]]

AGENT: Mapping[str, Form] = {
    "hello": {"protocol": is_count, "karui": is_word},
    "facts": {},
    "runtimes": {"names": is_list_of(is_word)},
    "missing": {"files": is_list_of(is_sized)},
    "put": {"sha256": is_hash, "bytes": is_count},
    "check": {"files": is_files},
    "open": {
        "worker": is_count,
        "artifact": is_files,
        "timing": is_files,
        "batch": is_up_to(MOST_BATCH),
        "threads": is_up_to(MOST_THREADS),
        "seconds": is_seconds,
        "bytes": is_count,
    },
    "post": {"worker": is_count, "message": is_message},
    "answer": {"worker": is_count},
    "ask": {"worker": is_count, "message": is_message},
    "memory": {"worker": is_count, "field": lambda value: value in ("VmRSS", "VmHWM")},
    "pin": {"worker": is_count, "cpus": is_list_of(is_count)},
    "hang_up": {"worker": is_count},
    "close": {"worker": is_count},
}
WORKER: Mapping[str, Form] = {
    "load": {},
    "warm": {"seconds": is_seconds},
    "time": {"calls": is_up_to(1 << 30)},
    "outputs": {"rows": is_files, "batch": is_up_to(MOST_BATCH), "index": is_list_of(is_count)},
}


def checked(message: Mapping[str, Any], forms: Mapping[str, Form]) -> dict[str, Any]:
    """The fields of a message, without its verb; raises UsageError for anything that was not agreed upon."""
    verb = message.get("do")
    if not isinstance(verb, str) or verb not in forms:
        raise UsageError(f"the agent does not know {shown(verb)}", fix=f"one of: {', '.join(forms)}")
    given, form = {key: value for key, value in message.items() if key != "do"}, forms[verb]
    if odd := sorted(map(shown, given.keys() ^ form.keys())):
        raise UsageError(f"{verb} has other fields", why=f"missing or too many: {', '.join(odd[:5])}")
    if bad := [key for key, fits in form.items() if not fits(given[key])]:
        raise UsageError(f"{verb} was given something else as {bad[0]}", why=shown(given[bad[0]]))
    return given


def shown(value: Any) -> str:
    """The start of something unexpected, safe to print."""
    return ascii(value)[:100]
