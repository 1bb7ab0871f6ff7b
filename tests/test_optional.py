"""Optional packages that are missing, or installed and broken."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from dafast import optional

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Makes a package whose import runs some code."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(optional, "_BROKEN", {})
    names = []

    def make(code: str) -> str:
        name = f"broken_{len(names)}_{tmp_path.name}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
        names.append(name)
        return name

    yield make
    for name in names:
        sys.modules.pop(name, None)


def test_a_module_that_imports_or_is_missing():
    assert optional.why_no_module("json", "xml.dom") == ""
    assert optional.why_no_module("json", "no_such_package") == "no_such_package is not installed"


@pytest.mark.parametrize(
    "code",
    [
        "raise RuntimeError('no\\nluck')",
        "raise ImportError('libx.so: cannot open')",
        "raise OSError('built for another torch')",
        "raise SystemExit(3)",
        "raise BaseException('a panic in Rust')",
        "raise MemoryError",
        "import a_dependency_that_is_missing",
        "1 / 0",
    ],
)
def test_a_broken_package_is_missing_with_a_reason(broken, code):
    name = broken(code)
    reason = optional.why_no_module(name)
    assert reason.startswith(f"{name} is installed, but its import fails (")
    assert "\n" not in reason
    assert optional.why_no_module(name) == reason  # and not "not installed"
    assert optional.why_no_module(f"{name}.part") == reason
    with pytest.raises(ModuleNotFoundError):
        __import__(name)


def test_a_broken_submodule_leaves_its_package(broken, tmp_path):
    name = broken("")
    (tmp_path / name / "part.py").write_text("raise OSError('x')")
    assert "(OSError: x)" in optional.why_no_module(f"{name}.part")
    assert "(OSError: x)" in optional.why_no_module(f"{name}.part")
    assert optional.why_no_module(name) == ""


def test_interrupting_an_import_is_no_broken_package(broken):
    name = broken("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        optional.why_no_module(name)


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("h5py", "from dafast.data.readers import get_reader as g; g('megadepth').items(here)"),
        ("OpenEXR", "from dafast.data.readers import get_reader as g; g('irs').items(here)"),
        ("lmdb", "from dafast.data.readers import get_picture_reader as g; g('lsun').items(here)"),
        ("h5py", "from dafast.evaluation.readers.hypersim import hypersim as h; h(here)"),
    ],
)
def test_a_reader_names_the_broken_package(package, call, tmp_path, monkeypatch):
    monkeypatch.setattr(optional, "_BROKEN", {package: f"{package} is installed, but (x)"})
    with pytest.raises(Exception, match=rf"pip install .*\({package} is installed, but \(x\)\)"):
        exec(call, {"here": tmp_path})


def test_optional_packages_are_tried_in_one_way():
    """Neither a search for a package nor `except ImportError` sees a broken one."""
    allowed = {
        "__init__.py",  # finds the kernels in a checkout
        "_extension.py",  # our own extension, reported by itself
        "textures.py",  # locates files of scikit-image, which it does not import
        "builtin.py",  # what the renderer raises, with the reason
        "remote.py",  # what fsspec raises for a protocol without its package
        "_startup.py",  # locates the libraries of PyTorch, which it does not import
    }
    for path in sorted((ROOT / "dafast").rglob("*.py")):
        if path.name not in allowed:
            text = path.read_text(encoding="utf-8")
            found = re.findall(r"find_spec|except \W*(?:Import|ModuleNotFound)Error", text)
            assert not found, f"{path}: use dafast.optional.why_no_module"
