"""The lock file: what an artifact was like, small enough for a repository, and sealed by its own digest.

It names the data by their fingerprint and holds none of them. Outcomes of 0 and 1 take a bit each.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.artifact import Artifact
from karui.errors import Tampered, UsageError

if TYPE_CHECKING:
    from karui.data import Array

SCHEMA = "karui.lock/1"
NAME = "karui.lock"
MACHINE = ("cpu", "cores", "flags")  # facts of the host that ratios depend on


def write_lock(facts: Mapping[str, Any], path: Path, *, force: bool = False) -> dict[str, Any]:
    """Seal ``facts`` and write them; an older file is left alone unless ``force``."""
    check_free(path, force=force)
    sealed = {"schema": SCHEMA, **facts}
    sealed["digest"] = digest(sealed)
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(json.dumps(sealed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)
    return sealed


def check_free(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", fix="--force writes over it; -o names another")


def read_lock(path: Path) -> dict[str, Any]:
    """What ``write_lock`` wrote; raises UsageError for another file, Tampered for one that was changed."""
    if not path.is_file():
        raise UsageError(f"there is no lock file {path}", fix="karui lock RUN")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise Tampered(f"{path} cannot be read", why=str(cause), fix="restore it, or lock again") from cause
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if schema != SCHEMA:
        raise UsageError(f"{path} has the unknown schema {schema!r}", fix=f"this karui reads {SCHEMA}")
    if facts.get("digest") != digest(facts):
        raise Tampered(
            f"{path} is not as it was written",
            why="its digest is of other content",
            fix="restore it; what is allowed is set by: karui lock --max-drop, --max-slower",
        )
    return dict(facts)


def digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 of all but the digest itself; blanks and the order of keys do not matter."""
    kept = {key: value for key, value in facts.items() if key != "digest"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def artifact_signature(artifact: Artifact) -> dict[str, Any]:
    """As JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(artifact.signature)))
    return found


def files_digest(artifact: Artifact) -> str:
    """Of all files of an artifact."""
    return digest(artifact.files)


def machine(host: Mapping[str, Any]) -> dict[str, Any]:
    return {key: host[key] for key in MACHINE}


def pack_outcomes(outcomes: Array) -> dict[str, Any]:
    """Outcomes of shape (n,) as text: a bit each where all are 0 or 1, else compressed float64."""
    import numpy as np

    if bool(((outcomes == 0) | (outcomes == 1)).all()):
        form, data = "bits", np.packbits(outcomes.astype(bool)).tobytes()
    else:
        form, data = "float64", zlib.compress(outcomes.astype("<f8").tobytes(), 9)
    return {"form": form, "n": len(outcomes), "data": base64.b64encode(data).decode()}


def unpack_outcomes(packed: Mapping[str, Any]) -> Array:
    """The inverse, as float64."""
    import numpy as np

    data, n = base64.b64decode(packed["data"]), packed["n"]
    if packed["form"] == "bits":
        return np.unpackbits(np.frombuffer(data, np.uint8), count=n).astype(np.float64)
    return np.frombuffer(zlib.decompress(data), "<f8").astype(np.float64)
