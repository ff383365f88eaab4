"""A package of AOTInductor without what only its compiler needed: a quarter of the bytes of a small model's.

Gone are the C++ sources and the names of the machine code's inner functions; the rest is deflated. Code,
weights and answers stay as they were, and PyTorch loads it as before.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

SOURCE, CODE = ".cpp", ".so"
ELF = b"\x7fELF"


def lean(path: Path) -> None:
    """Rewrite a ``.pt2`` package so."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        with ZipFile(path) as whole, ZipFile(made, "w") as kept:
            for entry in whole.infolist():
                if not entry.filename.endswith(SOURCE):
                    copy(whole, entry, kept, Path(scratch))
        made.replace(path)


def copy(whole: ZipFile, entry: ZipInfo, kept: ZipFile, scratch: Path) -> None:
    """One entry, by way of a file: weights may be larger than memory has room for twice."""
    there = scratch / "entry"
    with whole.open(entry) as source, there.open("wb") as target:
        shutil.copyfileobj(source, target)
    if entry.filename.endswith(CODE):
        strip(there)
    fresh = ZipInfo(entry.filename)  # of no date, so that equal models are equal files
    fresh.compress_type = ZIP_DEFLATED
    with there.open("rb") as source, kept.open(fresh, "w", force_zip64=entry.file_size >= 2**31) as target:
        shutil.copyfileobj(source, target)


def strip(library: Path) -> None:
    """Take the inner names out, where the tool for it is there; it comes with the linker of Linux."""
    tool = shutil.which("strip")
    with library.open("rb") as file:
        known = file.read(len(ELF)) == ELF
    if tool and known:
        subprocess.run([tool, "--strip-unneeded", str(library)], check=True, capture_output=True)
