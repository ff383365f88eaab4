"""An Artifact: a folder a real runtime can load, and a manifest that says how it was made.

Files are vanilla: ``model.onnx`` is a plain ONNX file. What karui knows stands beside it in
``manifest.json``, with the SHA-256 of every other file. A folder becomes an artifact in one
rename, so a half-written one is never seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from karui.errors import Tampered, UsageError, first_lines
from karui.units import Bytes

MANIFEST = "manifest.json"
SCHEMA = "karui.artifact/1"
RANGES, RANGES_TENSORS = "ranges.json", "ranges.safetensors"  # the quantization table
CHECK, CHECK_ROWS = "verify_on_mac.py", "verify_on_mac.npz"  # to be run where the runtime is
ON_GPU = ("build_engine.sh", "engine.json", "verify_on_gpu.py", "verify_on_gpu.npz", "model.plan")
BESIDE = (RANGES, RANGES_TENSORS, CHECK, CHECK_ROWS, *ON_GPU)  # not read, or made of what is read


@dataclass(frozen=True)
class Port:
    """One input or output; ``None`` in ``shape`` stands for the batch."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """How the original model is called, and what it gives back.

    ``style``: "args" (positional), "kwargs", or "dict" (one dict argument). ``tree`` puts flat
    outputs back into their structure (see ``karui.structure``).
    """

    style: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tree: Any = 0
    dynamic_batch: bool = True
    batch: int = 1


@dataclass(frozen=True)
class Artifact:
    """A folder on disk and what its manifest says of it."""

    folder: Path
    recipe: str
    runtime: str
    signature: Signature
    threads: int = 1
    executed: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> Bytes:
        """Bytes on disk of everything the runtime needs (what only karui reads is not counted)."""
        return sum((self.folder / name).stat().st_size for name in self.needed)

    @property
    def size_compressed_bytes(self) -> Bytes:
        """Bytes after general-purpose compression (zlib, level 6), as a download would be."""
        return sum(len(zlib.compress((self.folder / f).read_bytes(), 6)) for f in self.needed)

    @property
    def needed(self) -> list[str]:
        """The files that the runtime reads."""
        return [name for name in self.files if name not in BESIDE]


def save_artifact(artifact: Artifact) -> Artifact:
    """Write the manifest of ``artifact.folder`` and return the artifact with its file hashes."""
    folder = artifact.folder
    hashes = {name: sha256(folder / name) for name in listed(folder)}
    facts = asdict(artifact) | {"schema": SCHEMA, "files": hashes}
    del facts["folder"]
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return read_manifest(folder)


def load_artifact(folder: Path | str, *, check: bool = True) -> Artifact:
    """Read an artifact and check that every file is the one its manifest names.

    Raises UsageError when there is no artifact, Tampered when a file was changed, added or lost.
    """
    artifact = read_manifest(Path(folder))
    if check:
        verify_files(artifact)
    return artifact


def read_manifest(folder: Path) -> Artifact:
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} is not an artifact", why=f"it holds no {MANIFEST}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        schema = facts.pop("schema", None)
        facts["signature"] = read_signature(facts["signature"])
        artifact = Artifact(folder=folder, **facts)
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise Tampered(f"{path} cannot be read", why=str(cause)) from cause
    if schema != SCHEMA:
        raise UsageError(f"{path} has the unknown schema {schema!r}", fix=f"this karui reads {SCHEMA}")
    return artifact


def read_signature(facts: Mapping[str, Any]) -> Signature:
    ports = {
        key: tuple(Port(p["name"], p["dtype"], tuple(p["shape"])) for p in facts[key])
        for key in ("inputs", "outputs")
    }
    return Signature(**(dict(facts) | ports))


def verify_files(artifact: Artifact) -> None:
    there, said = set(listed(artifact.folder)), set(artifact.files)
    if there != said:
        names = ", ".join(sorted(there ^ said))
        raise Tampered(
            f"{artifact.folder} is not as it was made",
            why=f"added or lost: {names}",
            fix="build it again, or restore the folder",
        )
    for name, digest in artifact.files.items():
        if sha256(inside(artifact.folder, name)) != digest:
            raise Tampered(
                f"{artifact.folder} is not as it was made",
                why=f"{name} was changed",
                fix="build it again, or restore the file",
            )


def listed(folder: Path) -> list[str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p.relative_to(folder).as_posix() for p in files if p.name != MANIFEST)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, refusing a name that leads out of the folder."""
    pure = PurePosixPath(name)
    path = folder / pure
    if pure.is_absolute() or ".." in pure.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise Tampered(f"{name!r} leads out of its folder", fix="do not use this file")
    return path


def pack(artifact: Artifact, archive: Path) -> Path:
    """Write the artifact as one zip file."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in [MANIFEST, *artifact.files]:
            bundle.write(artifact.folder / name, name)
    return archive


def unpack(archive: Path, folder: Path) -> Artifact:
    """Open a zip made by ``pack`` into the new ``folder``; entries that escape it are refused."""
    try:
        with zipfile.ZipFile(archive) as bundle:
            entries = list(safe_entries(bundle, folder))
            folder.mkdir(parents=True)
            for entry, path in entries:
                path.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(entry) as source, path.open("wb") as goal:
                    shutil.copyfileobj(source, goal)
    except FileNotFoundError as cause:
        raise UsageError(f"there is no file {archive}") from cause
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as cause:
        raise Tampered(f"{archive} is not a whole zip file", why=first_lines(cause)) from cause
    return load_artifact(folder)


def open_artifact(path: Path, scratch: Path) -> Artifact:
    """An artifact from its folder, or from a zip made by ``pack``, which is unpacked into ``scratch``."""
    return unpack(path, scratch / "artifact") if path.suffix == ".zip" else load_artifact(path)


def safe_entries(bundle: zipfile.ZipFile, folder: Path) -> Iterator[tuple[zipfile.ZipInfo, Path]]:
    for entry in bundle.infolist():
        if (entry.external_attr >> 16) & 0o170000 == 0o120000:
            raise Tampered(f"{entry.filename!r} is a link", fix="do not use this file")
        if not entry.is_dir():
            yield entry, inside(folder, entry.filename)


def publish(draft: Path, folder: Path) -> None:
    """Make a finished draft folder visible under its final name, in one rename."""
    for path in sorted(draft.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    os.replace(draft, folder)
