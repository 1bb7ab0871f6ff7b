"""Checks the built site: no request to another host, no dead link, every picture has a text.

python scripts/check_site.py FOLDER
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page loads, links and shows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.without_text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the attributes of a tag."""
        found = {name: value or "" for name, value in attrs}
        self.ids.add(found.get("id", ""))
        if tag in LOADING and found.get(LOADING[tag]) and found.get("rel") != "canonical":
            self.loads.append(found[LOADING[tag]])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "img" and not found.get("alt"):
            self.without_text.append(found.get("src", "?"))


def problems(folder: Path) -> list[str]:
    """One line for each fault."""
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    found = [] if pages else [f"{folder} has no page"]
    for path, page in pages.items():
        name = path.relative_to(folder)
        for text in page.loads:
            if urlsplit(text).netloc:
                found.append(f"{name} loads {text}")
        for text in page.without_text:
            found.append(f"{name}: the picture {text} has no text")
        for text in {*page.links, *page.loads}:
            parts = urlsplit(text)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{name}: {text} leads nowhere")
            elif parts.fragment and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{name}: {text} leads to no part of its page")
    return found


if __name__ == "__main__":
    faults = problems(Path(sys.argv[1]).resolve())
    print("\n".join(faults) or "the site has no dead link and loads nothing from other hosts")
    sys.exit(bool(faults))
