"""The pages say what is there: links, commands, help, runtimes, options."""

from __future__ import annotations

import dataclasses
import json
import re

import pages
import pytest
import regenerate
from tests.docs import recorded

from karui import runtimes
from karui.cli.main import parser
from karui.errors import MissingRuntime
from karui.numerics import MEANING
from karui.recipe import parse_recipe

ALL = {pages.name(page): page for page in pages.PAGES}
KARUI = [(name, words) for name, page in ALL.items() for words in pages.commands(page) if words[0] == "karui"]
DOCS = pages.ROOT / "docs"


@pytest.mark.parametrize("name", ALL)
def test_links_resolve(name):
    page = ALL[name]
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), target
        assert not anchor or anchor in pages.anchors(goal), target


def test_every_page_is_linked_to():
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in pages.PAGES
        for target in pages.links(page)
    }
    assert [name for name, page in ALL.items() if page not in linked and page not in pages.READMES] == []


@pytest.mark.parametrize(
    ("name", "words"), KARUI, ids=[f"{name}: {' '.join(words)}" for name, words in KARUI]
)
def test_commands_parse(name, words):
    args = parser().parse_args(words[1:])
    for text in getattr(args, "recipe", []):
        assert str(parse_recipe(text)) == text


def test_other_commands_exist():
    makefile = (pages.ROOT / "Makefile").read_text()
    project = (pages.ROOT / "pyproject.toml").read_text()
    for page in pages.PAGES:
        for words in pages.commands(page):
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
            elif words[0] == "pip":
                extra = re.fullmatch(r"karui\[(\w+)\]", words[2])[1]
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), words
            else:
                assert words[0] == "karui", words


def test_both_readmes_have_the_same_commands_code_links_and_markers():
    english, japanese = pages.READMES
    assert pages.commands(english) == pages.commands(japanese)
    assert [plain(block) for block in pages.blocks(english, "python")] == [
        plain(block) for block in pages.blocks(japanese, "python")
    ]
    assert set(pages.links(english)) - {"README.ja.md"} == set(pages.links(japanese)) - {"README.md"}
    marks = [re.findall(r"<!-- (.*?) -->", page.read_text(encoding="utf-8")) for page in pages.READMES]
    assert marks[0] == marks[1]
    assert {"demo-table", "/demo-table", "results", "/results"} <= set(marks[0])


def plain(code: str) -> str:
    """Code without its comments, which are translated."""
    return re.sub(r" +#.*", "", code)


def test_help_is_as_printed():
    found = regenerate.PAGE.read_text(encoding="utf-8").split(regenerate.START)[1].split(regenerate.END)[0]
    fix = "run: python -m tests.docs.regenerate"
    assert regenerate.words(found) == regenerate.words(regenerate.help_block()), fix


@pytest.mark.gate
def test_reading_a_run_shows_what_is_printed():
    page = recorded.PAGE.read_text(encoding="utf-8")
    shown = [block for block in recorded.BLOCK.findall(page) if block[1].strip()]
    assert {command.split()[1] for command, _ in shown} == {"explain", "table", "compare"}
    assert recorded.page(page) == page, "run: python -m tests.docs.regenerate"


def test_every_key_of_the_documents_about_runs_is_explained():
    text = recorded.PAGE.read_text(encoding="utf-8")
    made = [
        json.loads(recorded.printed(f"karui {words} --json"))
        for words in (
            "explain best karui-runs/fashion",
            "table karui-runs/fashion",
            "compare karui-runs/fashion karui-runs/batch16",
        )
    ]
    free = {"conditions", "differences", "speedup", "quality"}  # named elsewhere, or by what was measured
    wanted = {key for document in made for key in pages.keys(document, free)}
    assert sorted(key for key in wanted if f"`{key}`" not in text and key != "schema") == []


def test_contributing_is_short():
    assert len((pages.ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 100


@pytest.mark.parametrize("name", runtimes.names())
def test_every_runtime_has_a_page(name):
    text = (DOCS / "runtimes" / f"{name}.md").read_text()
    assert f"<!-- measured: {name} -->" in text
    assert "<!-- /measured -->" in text
    for heading in ("## Precisions", "## Traps", "## Without karui"):
        assert heading in text


@pytest.mark.parametrize("name", runtimes.names())
def test_every_option_is_in_the_table(name):
    try:
        fields = dataclasses.fields(runtimes.find(name))
    except MissingRuntime as missing:
        pytest.skip(str(missing))
    table = (DOCS / "recipes.md").read_text().split("## Options")[1]
    assert set(re.findall(rf"^\| `{name}` \| `(\w+)` \|", table, re.MULTILINE)) == {f.name for f in fields}


def test_every_precision_is_explained():
    text = (DOCS / "recipes.md").read_text()
    assert all(f"| `{precision}` |" in text for precision in MEANING)


def test_the_paces_are_those_of_the_command_line():
    from karui.cli.options import settings_of

    text = (DOCS / "measuring.md").read_text()
    for pace in ("quick", "normal", "thorough"):
        options = {"recipe": [], "pace": pace, "timeout": "10m", "seed": 0}
        found = settings_of(options, "")
        trial, final = (f"{p.least} to {p.most} rounds, {p.seconds:g} s" for p in (found.pace, found.final))
        assert f"| `{pace}` | {trial} | {final} |" in text
