"""Making a drawn SVG fit into a page: its colours become the page's, its ids its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape

# A drawing names its colours by these stand-ins; the page's style sheet says what they are.
INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
BEST, GOOD, BAD, FAINT = "#050505", "#060606", "#070707", "#080808"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    BEST: "--best",
    GOOD: "--good",
    BAD: "--bad",
    FAINT: "--faint",
}
DROPPED = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
COLOR = re.compile("|".join(VARIABLES))
FONT = re.compile(r"font-family:[^;\"]*;?\s*")
SHORTHAND = re.compile(r"(font: [^;\"']*px) [^;\"]*")  # as matplotlib before 3.10 writes it
DECIMALS = re.compile(r"(\.\d\d)\d+")
SPACE = re.compile(r"\s*\n\s*")


def fit(svg: str, prefix: str, title: str, tips: Mapping[str, str]) -> str:
    """One ``<svg>`` element; ``tips`` maps an element's id to the words shown when pointing at it."""
    bare = STYLE.sub("", DROPPED.sub("", svg))
    tags = TAG.sub(lambda found: tag(found[0], prefix), bare)
    for name, words in tips.items():
        mark = f'<g id="{prefix}-{name}">'
        tags = tags.replace(mark, f"{mark}<title>{escape(words)}</title>", 1)
    return titled(SPACE.sub("\n", tags).strip(), prefix, title)


def tag(text: str, prefix: str) -> str:
    """Text between tags is never touched: a candidate may be called ``id="x"``."""
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = COLOR.sub(lambda found: f"var({VARIABLES[found[0]]})", text)
    return SPACE.sub(" ", DECIMALS.sub(r"\1", SHORTHAND.sub(r"\1 var(--sans)", FONT.sub("", text))))


def titled(svg: str, prefix: str, title: str) -> str:
    """Sized by the page, and named for those who cannot see it."""
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    name = f"{prefix}-title"
    words = f'<title id="{name}">{escape(title)}</title>'
    return f'{head} role="img" aria-labelledby="{name}">{words}{rest}'
