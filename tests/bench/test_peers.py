"""benchmarks/peers: who takes part, how lines are counted, and that nothing that fails is left out."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
import types

import numpy as np
import onnx
import pytest
from benchmarks.peers import _build, _given, _measure, _one, _registry, _table
from benchmarks.peers._measure import Entry
from onnx import TensorProto, helper, numpy_helper

from karui.artifact import Port, Signature

PEERS = {
    "neural_compressor", "nncf", "olive", "onnxruntime", "openvino", "pruna", "torch", "torch_pruning",
    "torchao",
}  # fmt: skip

SOURCE = '''
def way(given: Given) -> str:
    """A text that nobody counts."""
    import tool

    # nor a remark
    found = tool.call(
        given.model,
        given.example,
    )
    return helper(found)
'''


def test_the_folder_is_the_registry():
    assert {*PEERS, "karui"} == set(_registry.tools())
    for tool in _registry.tools():
        assert _registry.ways(tool)


def test_lines_are_those_with_code_of_the_body_and_of_what_it_calls():
    (function,) = ast.parse(SOURCE).body
    assert _registry.code_lines(function) == 6
    called = _registry.functions("_user")["export_onnx"]
    own = _registry.functions("onnxruntime")["fp32"]
    assert _registry.lines("onnxruntime", "fp32") == _registry.code_lines(own) + _registry.code_lines(called)


def test_a_tool_that_fails_becomes_a_row_that_says_so(tmp_path, monkeypatch):
    def broken(given):
        raise RuntimeError("no kernel for it\nand a long story")

    monkeypatch.setattr(_given, "given", lambda task, out: None)
    monkeypatch.setitem(sys.modules, "benchmarks.peers.broken", types.SimpleNamespace(way=broken))
    found = _one.outcome("mnist", "broken", "way", tmp_path)
    assert found["error"] == "RuntimeError: no kernel for it ... and a long story"
    assert row_of(tmp_path, found)[-1].startswith("failed: RuntimeError: no kernel for it")


def test_a_process_that_dies_or_hangs_becomes_a_row_as_well(tmp_path):
    assert _build.run(tmp_path / "a", ["false", "mnist", "torch", "eager"], 10)["error"] == (
        "the process ended with exit code 1: it said nothing"
    )
    sleeps = tmp_path / "sleeps"
    sleeps.write_text("#!/bin/sh\nsleep 60\n")
    sleeps.chmod(0o755)
    found = _build.run(tmp_path / "b", [str(sleeps), "mnist", "torch", "eager"], 0.3)
    assert found["error"] == "not done after 0.005 minutes"
    assert found["seconds"] < 10


def test_a_tool_that_does_not_install_becomes_a_row_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(_build, "packages", lambda tool, kind: ("./none.whl",) * (kind == "BESIDE"))
    python, failed = _build.environment("broken")
    assert python == sys.executable
    assert failed.startswith("not installed: ")


def test_foreign_files_are_opened_and_scored_by_their_own_answers(tmp_path):
    """An ONNX file of another tool, with names of its own: which of two numbers is the larger."""
    home = tmp_path / "way"
    (home / "artifact").mkdir(parents=True)
    onnx.save(twice(), home / "artifact" / "model.onnx")
    size = (home / "artifact" / "model.onnx").stat().st_size
    signature = Signature("args", (Port("x", "float32", (None, 2)),), (Port("output", "float32", (None, 2)),))
    entry = Entry("tool.way", {"made": {"": "artifact"}, "recipe": "fp32@onnxruntime"}, home)
    rows = np.array([[1, 2], [4, 3], [5, 6], [8, 7]], "float32")
    data = tmp_path / "data"
    _measure.save_arrays({"x": rows}, data / "rows")
    _measure.save_arrays({"x": rows[:1]}, data / "timing")
    labels = np.array([1, 0, 1, 1])
    found = _measure.scored(_measure.as_artifact(entry, signature), data, labels)
    assert found == {"accuracy": 75.0, "samples": 4, "size_bytes": size}


def test_losses_are_shown_as_losses(tmp_path):
    small, large = scored(tmp_path / "small", 90.0, 10), scored(tmp_path / "large", 90.0, 30)

    def words(mine, other, *ratio) -> str:
        return _table.Match("mnist", mine, other, ratio).cells[-1]

    assert words(small, large, 1.5, 1.4, 1.6, "faster") == "faster, smaller"
    assert words(large, small, 0.8, 0.7, 0.9, "slower") == "LOSS: slower, LOSS: larger"
    assert words(small, small, 1.0, 0.9, 1.1, "no measurable difference") == "equally fast, equally small"


def test_the_last_sentence_counts_what_the_rows_say(tmp_path):
    karui = dataclasses.replace(scored(tmp_path / "mine", 90.0, 10), name=_measure.KARUI)
    small, large = scored(tmp_path / "small", 90.0, 8), scored(tmp_path / "large", 90.0, 30)
    faster, slower = [1.6, 1.5, 1.7, "faster"], [0.8, 0.7, 0.9, "slower"]

    def pair(ratio, smallest):
        return tuple(_table.Match("t", karui, other, ratio) for other in (large, smallest))

    told = _table.count([pair(faster, large), pair(faster, small), pair(slower, large), pair(slower, small)])
    assert "on 1 of 4 tasks" in told
    assert told.endswith("smaller on 3.")


def test_what_lost_too_much_is_not_timed(tmp_path):
    base, bad = scored(tmp_path / "base", 90.0, 10), scored(tmp_path / "bad", 88.9, 10)
    times = {"ratios": {}, "failed": {}}
    assert _table.row(bad, base, times)[2] == "1.10"
    assert _table.row(bad, base, times)[-1] == "lost too much: not timed"


def row_of(home, found) -> list[str]:
    base = scored(home / "base", 90.0, 10)
    return _table.row(Entry("broken.way", found, home), base, {"ratios": {}, "failed": {}})


def scored(home, accuracy: float, size_bytes: int) -> Entry:
    home.mkdir(parents=True, exist_ok=True)
    score = {"": {"accuracy": accuracy, "samples": 100, "size_bytes": size_bytes}}
    (home / _measure.SCORES).write_text(json.dumps(score))
    return Entry("tool.way", {"made": {"": "artifact"}, "lines": 1, "seconds": 1.0}, home)


def twice() -> onnx.ModelProto:
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("theirs", "found")
    ]
    two = numpy_helper.from_array(np.float32(2), "two")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["theirs", "two"], ["found"])], "g", ports[:1], ports[1:]
    )
    graph.initializer.append(two)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("tool", sorted(PEERS))
def test_each_way_says_how_many_lines_it_takes(tool):
    assert all(_registry.lines(tool, way) > 0 for way in _registry.ways(tool))
