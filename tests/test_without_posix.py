"""Packing, labelling and training without what only POSIX has: `os.pread` and `fcntl`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafast import files
from dafast.data.remote import cache_folder
from dafast.files import read_at

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_POSIX = """if True:
    import os, sys
    from pathlib import Path
    sys.modules["fcntl"] = None
    del os.pread
    from dafast import files
    from dafast.cli import main
    files.WINDOWS = True
"""


def python(code: str, folder: Path) -> str:
    """Runs Python without POSIX in a folder, and returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX + code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**files.os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow  # three commands, each starts PyTorch's machinery
def test_packs_labels_and_trains(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, (60, 70, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.jpg")
    python(
        """
    def run(line):
        assert main(line.split()) == 0, line
    run("data pack photos --out packed --workers 1 --shard-size 2")
    run("label --model nano --in packed --out labeled")
    run("train --model.preset nano --data.path labeled --data.workers 0 --data.shapes 56 56 "
        "--batch-size 2 --steps 2 --out run")
    """,
        tmp_path,
    )
    assert len(list((tmp_path / "labeled").glob("*.tar"))) == 2
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert losses and np.isfinite(losses).all()
    assert list((tmp_path / "run" / "export").rglob("model.safetensors"))
    hidden = {p.name for p in tmp_path.rglob(".*")}
    assert not hidden


def test_a_claim_has_one_holder(tmp_path: Path) -> None:
    text = python(
        """
    a = Path("a.tar")
    with files.claimed_file(a) as first, files.claimed_file(a) as second:
        first.write(b"whole")
        print(second)
    with files.claimed_file(a) as third:
        print(third, a.read_bytes(), sorted(os.listdir()))
    """,
        tmp_path,
    )
    assert text.splitlines() == ["None", "None b'whole' ['a.tar']"]


@pytest.mark.parametrize("without", [False, True])
def test_reads_parts(
    without: bool, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = rng.bytes(1000)
    path = tmp_path / "file"
    path.write_bytes(content)
    if without:
        monkeypatch.delattr(files.os, "pread")
    with open(path, "rb") as file:
        for _ in range(20):
            start, size = (int(n) for n in rng.integers(0, 1000, 2))
            assert read_at(file.fileno(), size, start) == content[start : start + size]


def test_the_cache_is_where_the_platform_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    for name in ("DAFAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == platformdirs.user_cache_path("dafast", appauthor=False)
    if sys.platform.startswith("linux"):
        assert cache_folder() == Path.home() / ".cache" / "dafast"
        monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
        assert cache_folder() == Path("/elsewhere/dafast")
    monkeypatch.setenv("DAFAST_CACHE", "named")
    assert cache_folder() == Path("named")
