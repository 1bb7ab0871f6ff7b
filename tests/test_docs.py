"""Links, paths and names in the documentation exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dafast.training.config import ConfigError
from dafast.training.config_files import find_config
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
# A path in any text; without placeholders, patterns and URLs.
PATH = re.compile(r"(?<![\w/.*<>~$}-])\w[\w-]*(?:/[\w.-]+)+?\.(?:py|md|toml|sh|cpp|cu|h)(?![\w*])")
CODE = re.compile(r"`([^`\n]+)`")


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


def wrong_paths(file: Path) -> list[str]:
    """Paths in a text that name no file, though their first folder is one of the repository.

    They may be relative to the repository, the package, the extension's headers, or the file.
    """
    bases = (ROOT, ROOT / "dafast", ROOT / "csrc/include", file.parent)
    return [
        path
        for path in PATH.findall(file.read_text(encoding="utf-8"))
        if any((base / path.split("/")[0]).is_dir() for base in bases)
        and not any((base / path).is_file() for base in bases)
    ]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_in_pages_exist(page: Path):
    assert wrong_paths(page) == []


def test_paths_in_code_exist():
    wrong = [f"{page_id(f)}: {p}" for f in FILES for p in wrong_paths(f) if f != Path(__file__)]
    assert not wrong, "\n".join(wrong)


def test_paths_are_found(tmp_path: Path):
    text = "see docs/a.md, `bench/b.py --c` and csrc/cpu/<op>.cpp, docs/*.md. https://a/b.py"
    assert PATH.findall(text) == ["docs/a.md", "bench/b.py"]
    page = tmp_path / "page.md"
    page.write_text("`docs/gpu.md`, `cli/run.py`, others/x.py, but no docs/missing.md")
    assert wrong_paths(page) == ["docs/missing.md"]


TRAIN = re.compile(r"train(?:\.py)? [^`\n]*?--config[ =]([\w./-]+)")


def test_configurations_in_training_commands_exist():
    missing = []
    for file in (*PAGES, *(f for f in FILES if "tests" not in f.parts)):
        for name in TRAIN.findall(file.read_text(encoding="utf-8")):
            try:
                find_config(name, ROOT)
            except ConfigError:
                missing.append(f"{page_id(file)}: {name}")
    assert not missing, "\n".join(missing)
    commands = "dafast train --config a\ntorchrun train.py --x --config=b/c.toml"
    assert TRAIN.findall(commands) == ["a", "b/c.toml"]


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
    placed = re.findall(r"`([\w.]+)`(?:, `\w+`)? in `([\w/]+\.py)`", ARCHITECTURE)
    assert len(placed) > 10
    for name, path in placed:
        file = next(f for b in (ROOT, ROOT / "dafast") if (f := b / path).is_file())
        assert name in set(definitions(file)), f"{name} in {path}"
