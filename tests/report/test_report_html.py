from __future__ import annotations

import json
import random
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
import sample

from karui.report import html as page
from karui.report.html import MOST_BYTES, html

SAMPLES = {
    "full": sample.full,
    "nothing_met": sample.nothing_met,
    "minimal": sample.minimal,
    "unlabelled": sample.unlabelled,
    "regression": sample.regression,
}
VOID = {"meta", "wbr", "br", "link", "img", "hr"}
HARM = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: html(make()) for name, make in SAMPLES.items()}


class Outline(HTMLParser):
    """Collects what stands in a page, and fails on an element closed out of turn."""

    def __init__(self, text: str) -> None:
        HTMLParser.__init__(self)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def embedded(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="result">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("name", SAMPLES)
def test_well_formed_small_and_alone(pages: dict[str, str], name: str) -> None:
    text = pages[name]
    assert len(text.encode()) <= MOST_BYTES
    outline = Outline(text)
    assert not {"link", "img", "iframe", "object", "base", "image", "form"} & {t for t, _ in outline.elements}
    own = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text)
    assert not re.search(r"https?://|@import|url\((?!#)|src=", own)
    for _, attributes in outline.elements:
        assert all(not (key or "").startswith("on") for key in attributes)
        assert (attributes.get("href") or attributes.get("xlink:href") or "#").startswith("#")


@pytest.mark.parametrize("name", SAMPLES)
def test_every_picture_is_xml_with_ids_of_its_own(pages: dict[str, str], name: str) -> None:
    for svg in re.findall(r"<svg.*?</svg>", pages[name], re.DOTALL):
        ET.fromstring(svg)
        targets = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
        assert targets <= set(re.findall(r'\bid="([^"]+)"', svg))
    ids = [a["id"] for _, a in Outline(pages[name]).elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_all_four_pictures_follow_the_theme(pages: dict[str, str]) -> None:
    svgs = re.findall(r'<svg [^>]*aria-labelledby="(\w+)-\d+-title".*?</svg>', pages["full"], re.DOTALL)
    assert svgs == ["pareto"] * 2 + ["steps"] * 2 + ["latency"] * 2 + ["classes"] * 2
    drawn = "".join(re.findall(r"<figure.*?</figure>", pages["full"], re.DOTALL))
    assert "var(--ink)" in drawn and not re.search(r"#[0-9a-f]{6}\b", drawn.replace("#m", ""))


def test_light_dark_and_print(pages: dict[str, str]) -> None:
    for query in ("(prefers-color-scheme: light)", "(prefers-color-scheme: dark)", "@media print"):
        assert query in pages["full"]


def test_the_verdict_comes_first_and_the_confirmed_number_with_it(pages: dict[str, str]) -> None:
    text = pages["full"]
    order = ["<h1>onnxruntime int8 is 9.3x faster", "top-1, confirmed", "91.25", 'id="table"', "<figure",
             "verified on runtime", "Not tried", "Conditions",
             "<span>karui</span> <span>optimize"]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_the_three_baselines_are_named(pages: dict[str, str]) -> None:
    head = pages["full"].split('id="table"')[0]
    assert "9.31x" in head and "against eager; 5.58x" in head and "against torch.compile" in head
    assert "against FP32, same runtime" in head


def test_a_bench_without_a_budget_claims_none() -> None:
    result = sample.full()
    result["budget"] = {"max_drop": 100.0, "unit": "points", "allowed": 1.0}
    text = html(result)
    assert "Within the budget" not in text and "budget: none" in text and ">budget<" not in text


def test_the_table_has_every_trial_and_refusals_stand_apart(pages: dict[str, str]) -> None:
    result = sample.full()
    words = " ".join(" ".join(Outline(pages["full"]).words).split())
    body = re.search(r"<tbody>(.*?)</tbody>", pages["full"], re.DOTALL)
    assert body and body[1].count("<tr") == len(result["trials"])
    for item in result["refused"]:
        assert item["reason"] in words


def test_nothing_met_says_so(pages: dict[str, str]) -> None:
    assert "<h1>Nothing met the budget; the original is kept</h1>" in pages["nothing_met"]
    assert "Best effort, outside the budget" in pages["nothing_met"]
    assert 'class="best"' not in pages["nothing_met"]


def test_agreement_is_labelled_as_such(pages: dict[str, str]) -> None:
    assert "agreement with the original, no labels" in pages["unlabelled"]
    assert "agreement with the original" not in pages["full"]


def test_the_result_is_inside(pages: dict[str, str]) -> None:
    assert embedded(pages["full"]) == json.loads(json.dumps(sample.full()))


def test_text_of_users_is_never_markup() -> None:
    text = html(sample.hostile(HARM))
    assert HARM not in text and "&lt;script&gt;alert(1)" in text
    assert [t for t, _ in Outline(text).elements].count("script") == 2
    assert embedded(text)["task"]["model"] == HARM


def test_dollars_and_foreign_letters_in_names_are_drawn_as_they_are() -> None:
    result = sample.full()
    for index, entry in enumerate(result["trials"][9]["quality"]["per_class"]):
        entry["class"] = f"シャツ $x_{index}$"
    assert "シャツ $x_0$" in html(result)


def test_the_policy_admits_our_script_only(pages: dict[str, str]) -> None:
    policy = re.search(r'content="(default-src[^"]*)"', pages["full"])
    assert policy and policy[1].startswith("default-src 'none'") and "script-src 'sha256-" in policy[1]


def test_two_renderings_are_equal() -> None:
    assert html(sample.full()) == html(sample.full())


def test_without_matplotlib_a_note_stands_for_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "karui.report.charts", None)
    text = html(sample.full())
    Outline(text)
    assert "<figure" not in text and "matplotlib is not installed" in text and "int8@" not in text[:200]


def test_a_huge_result_stays_under_the_cap() -> None:
    result = sample.full()
    entry = result["trials"][9]
    many = [{**entry, "id": f"t{i}", "recipe": f"int8@runtime_{i}"} for i in range(400)]
    result["trials"] = [result["trials"][0], *many]
    result["best"] = "t0"
    entry["reason"] = "x" * 100_000
    text = html(result)
    assert len(text.encode()) <= MOST_BYTES
    Outline(text)


@pytest.mark.parametrize("seed", range(40))
def test_any_field_may_be_null_or_nonsense(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    if seed >= 6:  # drawing takes a second, so only a few seeds draw
        monkeypatch.setattr(page, "draw", lambda run: ({}, ""))
    rng = random.Random(seed)
    Outline(html({key: damaged(value, rng) for key, value in sample.full().items()}))


def damaged(value: Any, rng: random.Random) -> Any:
    """The same with one in fifteen values replaced by what should not be there."""
    if rng.random() < 1 / 15:
        return rng.choice([None, float("nan"), float("inf"), "x", 0, -1, [], {}, True, [None], 1e-12])
    if isinstance(value, dict):
        return {key: damaged(item, rng) for key, item in value.items()}
    if isinstance(value, list):
        return [damaged(item, rng) for item in value]
    return value


@pytest.mark.parametrize("field", list(sample.full()["trials"][9]))
def test_each_field_of_a_trial_may_be_missing(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setattr(page, "draw", lambda run: ({}, ""))
    result = sample.full()
    for entry in result["trials"]:
        entry.pop(field, None)
    assert "<h1>" in html(result)
