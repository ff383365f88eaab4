"""Which runtimes can be used on this machine; in a process of its own, for finding out loads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from karui import runtimes
from karui.process import serve


def answer(message: Mapping[str, Any]) -> dict[str, Any]:
    """Why each of ``names`` cannot be used here; empty for one that can."""
    return {"lacks": {name: runtimes.lacks(name) for name in message["names"]}}


if __name__ == "__main__":
    serve(answer)
