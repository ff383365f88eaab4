"""Files that a driver has sent, by their SHA-256, and folders made of them. All lie in one folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import final

from karui.artifact import inside, sha256
from karui.errors import MeasureFailed, Tampered, UsageError
from karui.units import Bytes

RESERVE_BYTES = 16 << 20  # of the disk is left free


@final
class Store:
    """Holds at most ``most`` bytes below ``folder``."""

    def __init__(self, folder: Path, most: Bytes) -> None:
        self.files, self.folders, self.most, self.bytes = folder / "files", folder / "folders", most, 0
        self.files.mkdir(parents=True)
        self.folders.mkdir()

    def missing(self, wanted: Mapping[str, Bytes]) -> list[str]:
        """Which of these hashes are not here yet; raises MeasureFailed when there is no room for them."""
        absent = [digest for digest in wanted if not (self.files / digest).exists()]
        self.check_room(sum(wanted[digest] for digest in absent))
        return absent

    def put(self, digest: str, size: Bytes, pieces: Iterable[bytes]) -> None:
        """Keep a file; it appears when it is whole and its hash is right."""
        self.check_room(size)
        draft, found = self.files / f"{digest}.draft", hashlib.sha256()
        try:
            with draft.open("wb") as file:
                for piece in pieces:
                    found.update(piece)
                    file.write(piece)
            if found.hexdigest() != digest:
                raise Tampered("a file has arrived with another hash than was said", why=found.hexdigest())
            self.bytes += 0 if (self.files / digest).exists() else size
            draft.replace(self.files / digest)
        finally:
            draft.unlink(missing_ok=True)

    def check_room(self, size: Bytes) -> None:
        if self.bytes + size > self.most:
            limit = f"{self.bytes} + {size} bytes are more than {self.most}"
            raise MeasureFailed("the agent takes no more files", why=limit, fix="karui agent --most")
        if size + RESERVE_BYTES > shutil.disk_usage(self.files).free:
            raise MeasureFailed("the disk of the agent is full", why=f"no room for {size} bytes")

    def folder(self, names: Mapping[str, str]) -> Path:
        """A folder with these files (name -> hash), made once; equal ones are shared."""
        path = self.folders / key(names)
        if not path.exists():
            draft = path.with_suffix(".draft")
            shutil.rmtree(draft, ignore_errors=True)
            try:
                self.lay_out(names, draft)
                draft.replace(path)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return path

    def lay_out(self, names: Mapping[str, str], folder: Path) -> None:
        folder.mkdir()
        for name, digest in names.items():
            source = self.files / digest
            if not source.exists():
                raise UsageError(f"{name!r} was not sent", why=digest)
            path = inside(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            linked(source, path)

    def check(self, names: Mapping[str, str]) -> None:
        """Raises Tampered when a file was changed, added or lost; it is then forgotten, to be sent again."""
        path = self.folder(names)
        there = {one.relative_to(path).as_posix(): one for one in path.rglob("*") if one.is_file()}
        changed = [n for n in names.keys() & there.keys() if sha256(there[n]) != names[n]]
        wrong = sorted({*changed, *(names.keys() ^ there.keys())})
        if wrong:
            for name in changed:
                (self.files / names[name]).unlink(missing_ok=True)
            shutil.rmtree(path)
            raise Tampered("the artifact was changed by running", why=f"changed, added or lost: {wrong[0]}")


def key(names: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(names.items())).encode()).hexdigest()


def linked(source: Path, path: Path) -> None:
    """A second name for a file, or a copy where the system has no such names."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, path)
