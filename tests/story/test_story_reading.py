"""Verbs that read a finished run: explain, compare, table, and the summary of a report."""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.fixture
def home(run_folder, cli, tmp_path):
    """The finished run under karui-runs of the working folder, as the verbs look for it."""
    return shutil.copytree(
        run_folder, tmp_path / "karui-runs" / "first", ignore=shutil.ignore_patterns("trials")
    )


def unlike(home, name, **changes):
    """A copy of the run's document with other keys."""
    facts = json.loads((home / "result.json").read_text()) | changes
    other = home.parent / name
    other.mkdir()
    (other / "result.json").write_text(json.dumps(facts))
    return other


@pytest.mark.gate
def test_explain_of_the_newest_run_and_of_a_named_one_say_the_same(cli, home):
    newest = cli("explain")
    assert newest.code == 0 and newest.out == cli("explain", "best", home).out
    assert newest.out == cli("explain", home).out == cli("explain", home / "result.json").out
    best = json.loads((home / "result.json").read_text())["best"]
    facts = json.loads(cli("explain", best, "--json").out)
    assert facts["schema"] == "karui.explain/1" and facts["id"] == best
    for title in ("Why this one", "What really executes", "Why not the others", "What to try next"):
        assert f"\n{title}\n" in newest.out


@pytest.mark.gate
def test_explain_of_each_recipe_of_a_real_run(cli, home):
    facts = json.loads((home / "result.json").read_text())
    for entry in facts["trials"]:
        said = cli("explain", entry["recipe"], home)
        assert said.code == 0 and f"{entry['recipe']} (" in said.out
        assert "as fast as the original" in said.out or "original" in said.out
    int8 = cli("explain", "int8@onnxruntime", home).out
    assert "100.0 % of the multiplications run in INT8." in int8 and "QGemm x2" in int8


@pytest.mark.gate
def test_an_unknown_recipe_is_answered_with_close_names(cli, home):
    said = cli("explain", "int8@onnx", home)
    assert (
        said.code == 2 and "the run has no recipe 'int8@onnx'" in said.err and "int8@onnxruntime" in said.err
    )


@pytest.mark.gate
@pytest.mark.parametrize("verb", ["explain", "table", "compare", "report"])
def test_what_is_no_finished_run_is_said(cli, home, tmp_path, verb):
    def call(folder):
        words = {"compare": (home, folder), "explain": ("best", folder), "report": (folder, "--summary")}
        return cli(verb, *words.get(verb, (folder,)))

    empty, begun, python, broken, bench = (tmp_path / f"a{i}" for i in range(5))
    for folder in (empty, begun, python, broken, bench):
        folder.mkdir()
    (begun / "run.json").write_text("{}")
    (python / "journal.jsonl").write_text("")
    (broken / "result.json").write_text("{")
    (bench / "result.json").write_text('{"schema": "karui.bench/1"}')
    expected = {
        tmp_path / "nowhere": f"there is no run {tmp_path / 'nowhere'}\n  try: one of: karui-runs/first",
        empty: "holds no run",
        begun: f"holds no finished run\n  try: karui resume {begun}",
        python: "try: call karui.optimize(...) again",
        broken: "cannot be read",
        bench: "is not the result of a run\n  why: its schema is 'karui.bench/1'",
    }
    for folder, words in expected.items():
        said = call(folder)
        assert said.code == 2 and words in said.err, said.err


def test_without_any_run(cli):
    said = cli("explain")
    assert said.code == 2 and "no finished run under karui-runs" in said.err
    assert "there is no run other/run" in cli("explain", "other/run").err


@pytest.mark.gate
def test_compare_of_a_run_with_another_machine(cli, home):
    facts = json.loads((home / "result.json").read_text())
    other = unlike(home, "second", host=facts["host"] | {"cpu": "another"}, best=None)
    said = cli("compare", home, other)
    assert said.code == 0 and "Seconds of these runs cannot be compared" in said.out
    assert "The best changed" in said.out and "no longer best" in said.out
    found = json.loads(cli("compare", home, other, "--json").out)
    assert found["schema"] == "karui.compare/1" and list(found["differences"]) == ["machine"]
    assert cli("compare", home, other, "--markdown").out.count("\n| ") > 10
    assert cli("compare", home).code == 2


@pytest.mark.gate
def test_the_table_of_a_real_run(cli, home):
    facts = json.loads(cli("table", home, "--json").out)
    rows = {row["kind"]: row for row in facts["rows"]}
    assert facts["schema"] == "karui.table/1" and rows["int8_dynamic"]["recipe"] == "int8_dynamic@onnxruntime"
    assert rows["int8"]["needs"] == "calibration data" and rows["int8"]["build_s"] > 0
    assert rows["half"]["recipe"] is None and rows["half"]["reason"] == "no recipe of this kind was tried"
    assert "INT8, calibrated (PTQ)" in cli("table").out and cli("table", "--markdown").out.startswith(
        "| kind |"
    )
    assert 'id="kinds"' in (home / "report.html").read_text()
    assert "### Trade-offs by kind" in (home / "report.md").read_text()


@pytest.mark.gate
def test_the_summary_is_short_and_writes_nothing(cli, home):
    before = {path: path.stat().st_mtime_ns for path in home.iterdir()}
    said = cli("report", home, "--summary")
    facts = json.loads((home / "result.json").read_text())
    assert said.code == 0 and said.out.startswith("### ")
    lines = [line for line in said.out.splitlines() if line.startswith("| ")]
    shown = {facts["baseline"], facts["best"] or facts["best_effort"], *facts["pareto"]}
    assert len(lines) == 2 + len(shown)
    assert {path: path.stat().st_mtime_ns for path in home.iterdir()} == before
    assert json.loads(cli("report", home, "--summary", "--json").out)["summary"] == said.out[:-1]
