from __future__ import annotations

import pytest
import sample

from karui.report import words
from karui.report.view import Quality, Speed, read


@pytest.mark.parametrize(
    ("value_s", "said"),
    [(2.041e-3, "2.04 ms"), (0.217e-3, "0.217 ms"), (54.3e-6, "54.3 µs"), (1.5, "1.50 s"), (None, "–")],
)
def test_latency_in_its_own_unit(value_s: float | None, said: str) -> None:
    assert words.time_unit([value_s])(value_s) == said


def test_a_column_has_one_unit() -> None:
    unit = words.time_unit([0.05e-3, 12e-3])
    assert (unit(0.05e-3), unit(12e-3)) == ("50.0 µs", "12,000 µs")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (90112, "88.0 KiB"),
        (512, "512 B"),
        (0, "0 B"),
        (1 << 20, "1.00 MiB"),
        (5 << 30, "5.00 GiB"),
        (None, "–"),
    ],
)
def test_size(value: float | None, said: str) -> None:
    assert words.size(value) == said


RATIOS = [(0.283, "0.28x"), (9.31, "9.31x"), (24.04, "24.0x"), (131.4, "131x")]


@pytest.mark.parametrize(("value", "said"), RATIOS)
def test_ratio(value: float, said: str) -> None:
    assert words.ratio_words(value) == said


@pytest.mark.parametrize(("value_s", "said"), [(83.1, "1 min 23 s"), (8.12, "8.12 s"), (3720, "1 h 02 min")])
def test_duration(value_s: float, said: str) -> None:
    assert words.duration(value_s) == said


@pytest.mark.parametrize(("value", "said"), [(77_754, "77.8 k"), (1234, "1,234"), (12_345_678, "12.3 M")])
def test_big_count(value: float, said: str) -> None:
    assert words.big_count(value) == said


def test_speed_has_its_interval_and_the_baseline_none() -> None:
    assert words.speed(Speed(0.95, 0.94, 0.951, "slower", "x")) == ("0.95x", "[0.94, 0.95]")
    assert words.speed(Speed(1.0, 1.0, 1.0, "baseline", "x")) == ("1.00x", "")
    assert words.speed(None) == ("–", "")


def quality(drop: float, low: float, high: float) -> Quality:
    return Quality(0.9, drop, low, high, "within", None, 100, None)


def test_a_drop_reads_as_a_minus_in_points() -> None:
    run = read(sample.full())
    assert words.change(run, quality(0.0012, -0.001, 0.0034)) == "−0.12 [−0.34, +0.10]"
    assert words.change(run, quality(-0.002, -0.003, 0.0)) == "+0.20 [0.00, +0.30]"
    assert words.change(run, quality(0.0, 0.0, 0.0)) == "identical"


def test_a_drop_of_an_error_reads_as_a_plus() -> None:
    run = read(sample.regression())
    assert words.change(run, quality(0.00012, -0.00001, 0.00025)) == "+0.00012 [−0.00001, +0.00025]"


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_drop": 0.5, "max_latency_s": 2e-3}, "at most 0.5 points lost, at most 2 ms a call"),
        ({"max_drop": 1, "max_size_bytes": 1 << 20}, "at most 1 point lost, at most 1.00 MiB"),
        ({"max_drop": 0.01, "unit": "relative", "allowed": 0.009141}, "at most 1 % lost"),
        ({"max_drop": 100}, "none"),
        ({}, "none"),
    ],
)
def test_budget_in_words(limits: dict, said: str) -> None:
    assert words.budget(read({**sample.full(), "budget": limits})) == said


def test_a_relative_budget_without_its_allowance_is_a_share_of_the_original() -> None:
    run = read({**sample.full(), "budget": {"max_drop": 0.01, "unit": "relative"}})
    assert run.budget.allowed == pytest.approx(0.009141)
