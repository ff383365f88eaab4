from __future__ import annotations

import io
import re

import pytest
import sample
from rich.console import Console

from karui.report.markdown import markdown, summary
from karui.report.rows import rows
from karui.report.text import compared, plain, table
from karui.report.view import read

SAMPLES = [sample.full, sample.nothing_met, sample.minimal, sample.unlabelled, sample.regression]


def terminal(result: dict, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")
    console.print(table(result))
    return console.file.getvalue()  # type: ignore[attr-defined]


def candidates(made: str) -> list[str]:
    """The lines of the first table of a Markdown text."""
    return [line for line in made.partition("### ")[0].splitlines() if line.startswith("|")]


def test_plain_starts_with_the_headline_and_shows_every_trial_and_refusal() -> None:
    result = sample.full()
    lines = plain(result).splitlines()
    assert lines[0] == result["verdict"]["headline"]
    for item in result["trials"] + result["refused"]:
        assert sum(line.split()[1:2] == [item["recipe"]] for line in lines) == 1, item["recipe"]
        assert item["reason"].split(": ")[-1] in plain(result)


def test_baseline_best_and_slower_rows_are_marked() -> None:
    lines = {line.split()[1]: line for line in plain(sample.full()).splitlines() if "@" in line}
    assert lines["fp32@torch_eager"].startswith("•") and "baseline" in lines["fp32@torch_eager"]
    assert lines["int8@onnxruntime"].startswith("★") and "best" in lines["int8@onnxruntime"]
    assert "slower here" in lines["fp16@onnxruntime"]
    assert "undecided, slower here than FP32" in lines["int8_dynamic@onnxruntime"]
    assert lines["bf16@openvino"].startswith("!") and "signal 11" in lines["bf16@openvino"]


def test_plain_columns_line_up() -> None:
    lines = [line for line in plain(sample.full()).splitlines() if "KiB" in line]
    assert len({line.index("KiB") for line in lines}) == 1


@pytest.mark.parametrize("width", [40, 80, 100])
def test_plain_keeps_to_its_width(width: int) -> None:
    lines = plain(sample.full(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("int8@aot_inductor" in line for line in lines) == 1


def test_best_effort_is_not_called_best() -> None:
    text = plain(sample.nothing_met())
    assert "☆  int8@onnxruntime" in text
    assert "★  " not in text.split("★ best")[0]


def test_confirmed_score_is_said() -> None:
    assert "confirmed on 850 unseen samples: top-1 91.25 % (−0.16 [−0.39, +0.07])." in plain(sample.full())


def test_rows_are_ordered_baseline_best_kept_others_failed_refused() -> None:
    tones = [row.tone for row in rows(read(sample.full()))]
    assert tones[:2] == ["baseline", "best"]
    assert tones[-5:] == ["failed"] + ["refused"] * 4
    assert tones.index("undecided") > max(i for i, tone in enumerate(tones) if tone == "kept")


@pytest.mark.parametrize("make", SAMPLES)
@pytest.mark.parametrize("width", [60, 140])
def test_rich_table_renders_every_sample(make, width: int) -> None:
    assert terminal(make(), width).strip()


def test_names_are_not_markup_and_cannot_move_the_cursor() -> None:
    result = sample.hostile("[bold]x[/bold]\x1b[2J\r\nline two")
    for text in (terminal(result, 200), plain(result)):
        assert "\x1b[2J" not in text and "[bold]" in text


@pytest.mark.parametrize("make", SAMPLES)
def test_markdown_has_a_row_for_every_trial_and_refusal(make) -> None:
    result = make()
    found = candidates(markdown(result))
    assert len(found) == 2 + len(result["trials"]) + len(result.get("refused", []))
    assert {line.replace("\\|", "").count("|") for line in found} == {9}


def test_markdown_shows_text_as_text() -> None:
    made = markdown(sample.hostile("a|b <img src=x> [l](https://e.org) @you `c`\n# h"))
    outside_code = "".join(part for i, part in enumerate(made.split("``")) if i % 2 == 0)
    assert not re.search(r"(?<!\\)<img", outside_code) and "](https://" not in outside_code
    assert "\n# h" not in made and " @you" not in outside_code
    found = candidates(made)
    assert {line.replace("\\|", "").count("|") for line in found} == {9}


def test_markdown_of_the_full_result_names_the_command_and_warnings() -> None:
    made = markdown(sample.full())
    assert made.startswith("## onnxruntime int8 is 9.3x faster")
    assert "`karui optimize examples/fashion/task.py:task --max-drop 0.5pt --out run`" in made
    assert "> ⚠ calibrate was drawn" in made


def test_artifacts_side_by_side() -> None:
    first, second = sample.full()["trials"][6], sample.full()["trials"][9]
    first["speedup"]["verdict"] = "baseline"
    lines = compared({"schema": "karui.bench/1", "rows": [first, second, {}]}).splitlines()
    assert lines[1].startswith("•  fp32@onnxruntime") and "1.00x" in lines[1]
    assert lines[2].startswith("✓  int8@onnxruntime") and "9.31x [9.15, 9.49]  faster: trials/" in lines[2]


@pytest.mark.gate
def test_the_summary_has_the_original_the_best_and_the_front_with_warnings() -> None:
    result = sample.full()
    made = summary(result)
    found = [line for line in made.splitlines() if line.startswith("|")]
    assert len(found) == 2 + 3 and "**`int8@onnxruntime`**" in made and "`fp32@onnxruntime`" in made
    assert "11 further candidates" in made and "> ⚠ calibrate was drawn" in made
    assert made.startswith("### onnxruntime int8 is 9.3x faster")
    result["command"] = "karui optimize " + "--recipe fp32@onnxruntime " * 40
    assert len(summary(result)) < len(made) + 200


@pytest.mark.parametrize("make", SAMPLES)
def test_every_sample_has_a_summary(make) -> None:
    assert summary(make()).startswith("### ")
