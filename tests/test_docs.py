"""The documentation holds together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bench", "csrc", "dafast", "docs", "examples", "experiments", "kernels", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.md"))])

LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")  # of [text](target#part "title"), also of pictures


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path):
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if ":" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_links_are_found():
    text = '[a](b.md) ![c](d/e.jpg) [f](g.md#part) [h](#part) [i](https://j) [k](l.md "title")'
    assert LINK.findall(text) == ["b.md", "d/e.jpg", "g.md", "https://j", "l.md"]
    assert ROOT / "README.md" in PAGES
