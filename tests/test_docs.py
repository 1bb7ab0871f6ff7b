"""Links, paths and names in the documentation exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_imports import GROUND, MAY_IMPORT

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bench", "csrc", "dafast", "docs", "examples", "experiments", "kernels", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.md"))])
FILES = sorted(
    p
    for f in (*FOLDERS, "configs", "scripts")
    for p in (ROOT / f).rglob("*")
    if p.suffix in (".py", ".toml", ".sh", ".cpp", ".cu", ".h")
)

LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")  # of [text](target#part "title"), also of pictures
SUFFIXES = r"\.(?:py|md|toml|sh|cpp|cu|h)(?![\w*])"
# Paths from the root of the repository, in any text.
PATH = re.compile(
    rf"(?<![\w/.*<$-])(?:{'|'.join((*FOLDERS, 'configs', 'scripts'))})/[\w./-]+?{SUFFIXES}"
)
CODE = re.compile(r"`([^`\n]+)`")
CODE_PATH = re.compile(rf"(?<![\w/.*<>~$-])\w[\w-]*(?:/[\w.-]+)+?{SUFFIXES}")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page: Path):
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if ":" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_links_are_found():
    text = '[a](b.md) ![c](d/e.jpg) [f](g.md#part) [h](#part) [i](https://j) [k](l.md "title")'
    assert LINK.findall(text) == ["b.md", "d/e.jpg", "g.md", "https://j", "l.md"]
    assert ROOT / "README.md" in PAGES


def test_paths_in_prose_and_comments_exist():
    wrong = []
    for file in (*PAGES, *FILES):
        text = file.read_text(encoding="utf-8")
        wrong += [f"{page_id(file)}: {p}" for p in PATH.findall(text) if not (ROOT / p).is_file()]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_in_the_code_of_a_page_exist(page: Path):
    """A path in backticks is one from the root, from the package, or from the page."""
    bases = (ROOT, ROOT / "dafast", page.parent)
    spans = CODE.findall(page.read_text(encoding="utf-8"))
    paths = [path for span in spans for path in CODE_PATH.findall(span)]
    assert [p for p in paths if not any((base / p).is_file() for base in bases)] == []


def test_paths_are_found():
    text = "see docs/a.md, `bench/b.py --c` and csrc/cpu/<op>.cpp, runs/docs/d.md, docs/*.md."
    assert PATH.findall(text) == ["docs/a.md", "bench/b.py"]
    text = "python cli/run.py out/best.pth --config configs/x/y.toml https://a/b.py kernels/<op>.py"
    assert CODE_PATH.findall(text) == ["cli/run.py", "configs/x/y.toml"]


# ------------------------------------------------------------------------- docs/architecture.md

ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def table_of_layers() -> dict[str, set[str]]:
    section = ARCHITECTURE.split("## Layers")[1].split("## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    allowed: dict[str, set[str]] = {}
    for head, cell in rows:
        imports = CODE.findall(cell)
        for part in CODE.findall(head):
            allowed[part] = set(imports)
            if "all that it may import" in cell:
                allowed[part] |= {name for other in imports for name in allowed[other]}
    return allowed


def test_the_table_of_layers_is_that_of_the_import_test():
    assert table_of_layers() == MAY_IMPORT


def test_the_drawing_names_the_ground():
    drawing = ARCHITECTURE.split("```")[1]
    listed = drawing.split("may import:")[1]
    assert set(re.findall(r"\w+", listed)) == GROUND


def definitions(file: Path) -> Iterator[str]:
    """Names of functions and classes, also `Class.method` and `Class.field`."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    yield f"{node.name}.{member.name}"
                elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    yield f"{node.name}.{member.target.id}"


def test_the_names_of_the_architecture_page_exist():
    known = {name for file in (ROOT / "dafast").rglob("*.py") for name in definitions(file)}
    methods = set(re.findall(r"`([A-Z]\w+\.\w+)`", ARCHITECTURE))
    classes = set(re.findall(r"`([A-Z][a-z]\w*)[`(]", ARCHITECTURE))
    assert sorted((methods | classes) - known) == []
    placed = re.findall(r"`([\w.]+)`(?:, `\w+`)? (?:in|of) `([\w/]+\.py)`", ARCHITECTURE)
    assert len(placed) > 10
    for name, path in placed:
        file = next(f for b in (ROOT, ROOT / "dafast") if (f := b / path).is_file())
        assert name in set(definitions(file)), f"{name} in {path}"
