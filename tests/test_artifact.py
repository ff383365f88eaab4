"""Artifacts: hashes are checked, tampering is found, archives cannot escape their folder."""

from __future__ import annotations

import json
import zipfile

import pytest

from karui.artifact import Artifact, Port, Signature, load_artifact, pack, save_artifact, unpack
from karui.errors import Tampered, UsageError


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "artifact"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights" * 100)
    (folder / "sub" / "notes.txt").write_text("軽い")
    ports = (Port("x", "float32", (None, 3)),)
    signature = Signature("args", ports, ports, ["tuple", [0]], batch=4)
    return save_artifact(
        Artifact(folder, "int8@onnxruntime", "onnxruntime", signature, executed={"precision": "int8"})
    )


def test_round_trip(artifact):
    assert load_artifact(artifact.folder) == artifact
    assert artifact.size_bytes == 700 + len("軽い".encode())
    assert artifact.size_compressed_bytes < artifact.size_bytes


@pytest.mark.gate
@pytest.mark.parametrize("how", ["changed", "added", "lost", "manifest cut", "manifest schema"])
def test_tampering_is_found(artifact, how):
    model, manifest = artifact.folder / "model.onnx", artifact.folder / "manifest.json"
    if how == "changed":
        model.write_bytes(b"wrights" * 100)
    elif how == "added":
        (artifact.folder / "extra.so").write_bytes(b"x")
    elif how == "lost":
        model.unlink()
    elif how == "manifest cut":
        manifest.write_text(manifest.read_text()[:50])
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": "karui.artifact/9"}))
    with pytest.raises((Tampered, UsageError)) as caught:
        load_artifact(artifact.folder)
    assert caught.value.exit_code == 2
    assert caught.value.why or caught.value.fix


def test_a_manifest_that_points_outside_is_refused(artifact):
    manifest = artifact.folder / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"]["../../etc/passwd"] = "0" * 64
    manifest.write_text(json.dumps(facts))
    with pytest.raises(Tampered):
        load_artifact(artifact.folder)


def test_zip_round_trip(artifact, tmp_path):
    found = unpack(pack(artifact, tmp_path / "a.zip"), tmp_path / "out")
    assert found.files == artifact.files


@pytest.mark.gate
@pytest.mark.parametrize("name", ["../escaped.txt", "/tmp/escaped.txt", "a/../../escaped.txt"])
def test_an_entry_that_escapes_is_refused(artifact, tmp_path, name):
    archive = pack(artifact, tmp_path / "a.zip")
    with zipfile.ZipFile(archive, "a") as bundle:
        bundle.writestr(name, "boo")
    with pytest.raises(Tampered, match="leads out of its folder"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "escaped.txt").exists()
    assert not (tmp_path / "out").exists()


def test_a_cut_archive_is_refused(artifact, tmp_path):
    archive = pack(artifact, tmp_path / "a.zip")
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(Tampered, match="not a whole zip"):
        unpack(archive, tmp_path / "out")


def test_a_folder_without_manifest_is_no_artifact(tmp_path):
    with pytest.raises(UsageError, match="is not an artifact"):
        load_artifact(tmp_path)
