"""Code of the documentation: Python blocks run, commands parse, quoted messages exist.

Published weights are not downloaded: a small network with random weights and the same kind of
output takes the place of each. A block after `<!-- notest: REASON -->` does not run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import re
import shlex
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dafast
from dafast.cli import build_parser
from dafast.config import PRESETS
from tests.tiny import tiny

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PYTHON = re.compile(r"(<!-- notest: [^\n]+ -->\n)?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_PYTHON = [page for page in PAGES if PYTHON.search(page.read_text(encoding="utf-8"))]

# Words of commands that stand for anything.
PLACEHOLDER = re.compile(r"^(\.\.\.|[A-Z_|]+)$|[<>]")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> list[list[str]]:
    """The calls of `dafast` in the shell blocks of a page."""
    found = []
    for block in SHELL.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\||&&|;", re.sub(r"\s#.*", "", line)):
                words = shlex.split(part)
                if words[:1] == ["dafast"]:
                    found.append(words[1:])
    return found


def test_commands_in_the_documentation_parse():
    wrong, count = [], 0
    parser = build_parser()
    for page in PAGES:
        for words in commands(page):
            if any(PLACEHOLDER.search(word) for word in words) or words[:1] == ["train"]:
                continue  # tyro parses the options of `dafast train` when it runs
            count += 1
            errors = io.StringIO()
            try:
                with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
                    parser.parse_args(words, argparse.Namespace(verbose=0, quiet=False))
            except SystemExit as end:
                if end.code:
                    wrong.append(f"{page_id(page)}: dafast {' '.join(words)}\n{errors.getvalue()}")
    assert not wrong, "\n".join(wrong)
    assert count > 60


def test_shell_blocks_have_one_name():
    """Tests would overlook a block of another name."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"^```(sh|bash|shell|zsh|console)$", text, re.MULTILINE)) == {"sh"}


def test_quoted_messages_exist():
    """Of the page of messages; strings that go over several lines of code are joined."""
    code = " ".join(
        re.sub(r'"\s*\n\s*f?r?"', "", path.read_text(encoding="utf-8"))
        for path in (ROOT / "dafast").rglob("*.py")
    )
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    heads = re.findall(r"^- \*\*(.*?)\*\*", page, re.MULTILINE)
    quoted = [text for head in heads for text in re.findall(r"`([^`]+)`", head)]
    patterns = {text: ".*?".join(map(re.escape, text.split("..."))) for text in quoted}
    assert len(quoted) > 8
    assert [text for text, pattern in patterns.items() if not re.search(pattern, code)] == []


def test_blocks_that_do_not_run_are_few_and_say_why():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    marks = re.findall(r"<!-- notest.*", text)
    assert [m for m in marks if not re.fullmatch(r"<!-- notest: \w.+ -->", m)] == []
    assert len(marks) <= 15 < len(PYTHON.findall(text)) / 3


FRAMES = [np.full((42, 56, 3), 9 * i, np.uint8) for i in range(3)]


def small(name: Any) -> dafast.ModelConfig:
    """The configuration of a model, with few channels."""
    names = {**{n: n for n in PRESETS}, "nano": "vits"}
    preset = PRESETS[names.get(str(name), "v2-vits")]
    sizes = {
        field: getattr(tiny(), field)
        for field in ("embed_dim", "num_layers", "num_heads", "features", "out_channels")
    }
    places = {"out_indices": (0, 1, 2, 3), "image_size": 28, "grid_size": 2}
    return dataclasses.replace(preset, **sizes, **places)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the documentation names, and small models for all names."""

    def depth(cls: type, name: Any, **_: Any) -> Any:
        return dafast.DepthAnything(small(name)).eval()

    def segmentation(cls: type, name: Any, **_: Any) -> Any:
        classes = ["sky", "ground", "rest"]
        return dafast.SegmentationModel.from_depth(depth(cls, "nano"), classes, head="linear")

    for kind, load in (
        (dafast.DepthAnything, depth),
        (dafast.SegmentationModel, segmentation),
    ):
        monkeypatch.setattr(kind, "from_pretrained", classmethod(load))
    photo = Image.open(ROOT / "examples/photos/room.jpg").resize((112, 84))
    (tmp_path / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    for name in ("photo", "a", "b", "photos/c", "photos/d"):
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA405] = 28
        photo.save(path, exif=exif)
    photo.save(tmp_path / "phone.jpg", exif=exif)
    (tmp_path / "film").mkdir()
    for i, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / "film" / f"{i}.png")
    (tmp_path / "depth").mkdir()
    result = depth(dafast.DepthAnything, "nano").predict(photo)
    result.save(tmp_path / "depth/room_depth.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_id)
def test_python_in_the_documentation_runs(page: Path, folder: Path, seed: int):
    """All blocks of a page, one after the other, in one namespace."""
    torch.manual_seed(seed)
    given = {
        "np": np,
        "torch": torch,
        "dafast": dafast,
        "DepthAnything": dafast.DepthAnything,
        "fx": 100.0,
        "fy": 100.0,
        "cx": 56.0,
        "cy": 42.0,
        "frames": FRAMES,
        "images": torch.zeros(1, 3, 224, 224),
        "image": np.asarray(Image.open("photo.jpg")),
        "metric": dafast.DepthAnything(small("metric-indoor-vitl")),
    }
    module = types.ModuleType("page")
    module.__dict__.update(given)
    for mark, code in PYTHON.findall(page.read_text(encoding="utf-8")):
        if not mark:
            code = code.replace('"film.mp4"', '"film"').replace('device="cuda"', 'device="cpu"')
            exec(compile(code, page_id(page), "exec"), module.__dict__)
