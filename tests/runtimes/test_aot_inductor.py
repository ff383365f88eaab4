from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import torch._inductor.config
from tests.runtimes.torch_source import Faulty, answers_of, cosine, images, rows_of, source_of

from karui import host
from karui.artifact import read_signature
from karui.graph.ranges import emit_pt2e
from karui.numerics import Numerics
from karui.recipe import parse_named
from karui.runtimes import Ask, load
from karui.runtimes import aot_inductor as module

aot_inductor = load(parse_named("aot_inductor"))


@pytest.fixture(scope="module", autouse=True)
def quick_wrappers():
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    if reason := aot_inductor.refuses(Ask(Numerics("int8"), flags=tuple(host.flags()))):
        pytest.skip(f"INT8 is refused here: {reason}")
    torch.manual_seed(0)
    model = Faulty().eval()
    return model, source_of(model, images(), tmp_path_factory.mktemp("source"), "int8")


RUN = """
import json, sys
from pathlib import Path
import numpy as np
from karui.artifact import read_signature
from karui.recipe import parse_named
from karui.runtimes import load
folder, signature, rows, out = sys.argv[1:]
predict = load(parse_named("aot_inductor")).load(Path(folder), read_signature(json.loads(signature)), 1)
name = json.loads(signature)["inputs"][0]["name"]
rows = np.load(rows)
np.savez(out, *[predict({name: rows[:n]})[0] for n in (1, 1, 5, 64)])
"""


def test_int8_is_right_at_every_batch_in_a_fresh_process_without_a_compiler(source, tmp_path):
    """The fault avoided: an image of one channel with a dynamic batch gave garbage, and no error."""
    model, given = source
    folder = tmp_path / "artifact"
    folder.mkdir()
    built = aot_inductor.build(given, folder)
    assert (built.executed["int8_kernels"], built.executed["int8_macs"]) == (3, 1.0)
    assert "avx" in built.executed["instruction_set"]
    table = ["ranges.json", "ranges.safetensors"]
    assert sorted(file.name for file in folder.iterdir()) == ["model.pt2", *table]
    signature = json.dumps(dataclasses.asdict(given.signature))
    environment = {key: value for key, value in os.environ.items() if key != "CXX"} | {"PATH": ""}
    rows, out = tmp_path / "rows.npy", tmp_path / "out.npz"
    np.save(rows, images())
    command = [sys.executable, "-W", "error", "-c", RUN, folder, signature, rows, out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = list(np.load(out).values())
    assert np.array_equal(calls[0], calls[1])
    for answer in calls:
        np.testing.assert_allclose(answer, built.reference[0][: len(answer)], atol=0.01)
    assert cosine(calls[3], answers_of(model, given)) > 0.995
    assert read_signature(json.loads(signature)) == given.signature


def test_a_lean_package_answers_as_the_whole_one(source, tmp_path, monkeypatch):
    given = source[1]
    lean, folder = module.lean, tmp_path / "artifact"
    folder.mkdir()
    monkeypatch.setattr(module, "lean", lambda path: shutil.copy(path, tmp_path / "whole.pt2") and lean(path))
    aot_inductor.build(given, folder)
    whole, made = tmp_path / "whole.pt2", folder / "model.pt2"
    assert made.stat().st_size < whole.stat().st_size / 2
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    names = ZipFile(made).namelist()
    assert not [name for name in names if name.endswith(".cpp")]
    assert {name for name in ZipFile(whole).namelist() if not name.endswith(".cpp")} == set(names)
    shutil.copytree(folder, tmp_path / "other")
    shutil.copy(whole, tmp_path / "other" / "model.pt2")
    rows = rows_of(given, 64)
    here, there = (aot_inductor.load(home, given.signature, 1)(rows) for home in (folder, tmp_path / "other"))
    assert np.array_equal(here[0], there[0])


def test_garbage_from_an_image_of_one_channel_would_be_seen(source, tmp_path, monkeypatch):
    """Without a second channel, answers are far from the fake-quant reference."""
    monkeypatch.setattr(emit_pt2e, "widen_images", lambda graph: None)
    given = source[1]
    built = aot_inductor.build(given, tmp_path)
    assert built.executed["int8_kernels"] == 3
    answers = aot_inductor.load(tmp_path, given.signature, 1)(rows_of(given, 64))[0]
    if cosine(answers, built.reference[0]) > 0.999:
        pytest.skip(f"torch {torch.__version__} reads the one channel right")
    assert cosine(answers, built.reference[0]) < 0.99
