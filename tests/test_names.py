"""Sizes and names that keep the code readable."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow  # parses everything

FOLDERS = ("dafast", "kernels", "bench", "examples", "experiments", "scripts", "tests")
FILES = sorted([*(ROOT / "dafast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
MOST = {"dafast/cli/__init__.py": 120, "dafast/ops/flash_attention.py": 420}
"""Lines of files that may have fewer than the others."""

MOST_IN = {"examples": 40, "examples/integrations": 60, "examples/space": 60}
"""The same for the files of a folder."""


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}


@pytest.fixture(scope="module")
def nodes(sources: dict[str, str]) -> list[tuple[str, ast.AST]]:
    """The classes, functions and calls of all files."""
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Call
    return [
        (name, node)
        for name, text in sources.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, kinds)
    ]


def test_files_have_at_most_500_lines():
    found = [*ROOT.glob("*.py"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*.py"))]
    found += [p for p in (ROOT / "csrc").rglob("*") if p.is_file()]
    lines = {p.relative_to(ROOT): len(p.read_bytes().splitlines()) for p in found}
    assert len(lines) > 700
    for path, count in lines.items():
        most = MOST.get(path.as_posix(), MOST_IN.get(path.parent.as_posix(), 500))
        assert count <= most, path


def test_functions_have_at_most_90_lines(nodes):
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    found = [(name, node) for name, node in nodes if isinstance(node, functions)]
    assert len(found) > 2000
    assert not [f"{name}: {f.name}" for name, f in found if f.end_lineno - f.lineno >= 90]


def test_no_two_classes_have_one_name(nodes):
    places = defaultdict(list)
    for name, node in nodes:
        if isinstance(node, ast.ClassDef):
            places[node.name].append(name)
    assert len(places) > 200
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_backends_do_not_ask_what_is_forced(nodes):
    """`Op.select` knows it; the key of a captured graph has it."""
    asking = {
        name
        for name, node in nodes
        if isinstance(node, ast.Call)
        and "forced_backend" in {getattr(node.func, "id", ""), getattr(node.func, "attr", "")}
    }
    assert asking == {"dafast/models/cuda_graphs.py"}
