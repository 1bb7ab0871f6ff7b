"""`scripts/check_site.py` and the pages that are made from the code. CI builds the whole site."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from scripts import site_source
from scripts.check_site import problems
from tests.public_api import MODULES, public_names

ROOT = Path(__file__).resolve().parent.parent


def test_faults_of_a_site_are_found(tmp_path):
    (tmp_path / "other.html").write_text('<h1 id="part">x</h1>')
    page = tmp_path / "page.html"
    page.write_text(
        '<a href="other.html#part">x</a><a href="https://a.b">y</a><img src="" alt="z">'
    )
    assert problems(tmp_path) == []
    page.write_text(
        '<a href="missing.html">x</a><a href="other.html#no">x</a><img src="page.html">'
        '<script src="https://a.b/c.js"></script>'
    )
    found = "\n".join(problems(tmp_path))
    assert len(problems(tmp_path)) == 4
    for text in ("missing.html leads nowhere", "no part", "has no text", "loads https://a.b/c.js"):
        assert text in found


def test_links_that_leave_the_pages_lead_to_the_repository():
    text = "[a](../README.md) [b](video.md#x) [c](https://d)\n[e]: ../dafast/ops\n"
    found = site_source.lead_outside(text, Path("docs", "page.md"), "https://host/repo")
    assert "(https://host/repo/blob/main/README.md)" in found
    assert "(video.md#x) [c](https://d)" in found
    assert "[e]: https://host/repo/tree/main/dafast/ops" in found


def test_every_command_and_key_has_its_place():
    commands = site_source.commands_page()
    for name in ("dafast run", "dafast data check", "dafast models info"):
        assert f"## `{name}`" in commands
    keys = site_source.configuration_page()
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", keys, re.MULTILINE)
    assert len(rows) > 60 and [name for name, text in rows if not text] == []


def test_every_public_name_is_in_the_reference():
    pages = (ROOT / "docs/reference").glob("*.md")
    text = "\n".join(
        [*(page.read_text(encoding="utf-8") for page in pages), site_source.ops_page()]
    )
    listed = set(re.findall(r"^::: dafast\.(\S+)", text, re.MULTILINE))
    last = {name.rpartition(".")[2] for name in listed}
    assert len(listed) > 120 and len(re.findall(r"^::: ", text, re.MULTILINE)) == len(listed)
    found = {f"{module}.{name}" for module in MODULES for name in public_names(module)}
    assert {name for name in found if name.rpartition(".")[2] not in last} == {"dafast.__version__"}


def test_every_page_is_in_the_navigation():
    def paths(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for each in entry if isinstance(entry, list) else entry.values():
                yield from paths(each)

    listed = set(paths(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    made = {f"reference/{name}.md" for name in ("ops", "commands", "configuration")}
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert listed == pages | made
