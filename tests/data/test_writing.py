"""Files that are written by one process, whole or not at all."""

from __future__ import annotations

import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafast.cli import main
from dafast.data.labeling import label_shards
from dafast.data.writing import claim, locked, read_failures, write_failures
from dafast.files import DiskFullError
from tests.full_disk import limited


def test_two_never_write_one(tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    with claim(target) as first:
        assert first is not None
        first.write(b"whole")
        with claim(target) as second:
            assert second is None
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    with claim(target) as third:
        assert third is None

    def fail() -> None:
        with claim(tmp_path / "b.tar") as failed:
            assert failed is not None
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with claim(tmp_path / "b.tar") as again:
        assert again is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_what_a_killed_process_left_is_no_claim(tmp_path: Path) -> None:
    (tmp_path / ".a.tar.part").write_bytes(b"half of a longer shard")
    with claim(tmp_path / "a.tar") as file:
        assert file is not None
        file.write(b"whole")
    assert (tmp_path / "a.tar").read_bytes() == b"whole"


def test_failures_are_kept_beside_the_shard(tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    assert read_failures(target) == []
    failures = [("a.tar/x", 'a "reason"'), ("a.tar/y", "zwei\nZeilen")]
    write_failures(target, failures)
    assert read_failures(target) == failures
    write_failures(target, [])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_is_finished(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    """Packing and labelling: one line that names the file, and the same command goes on."""
    for name, side in (("a", 40), ("b", 900)):
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg", quality=100)
    packed, labeled = tmp_path / "packed", tmp_path / "labeled"
    command = ["data", "pack", str(tmp_path), "--out", str(packed), "--shard-size", "1"]
    with limited(500_000):
        assert main([*command, "--workers", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(packed / "shard-000001.tar") in error and "Free some space" in error
    assert {p.name for p in packed.iterdir()} == {"shard-000000.tar", "manifest.json"}
    first = (packed / "shard-000000.tar").stat().st_mtime_ns
    assert main([*command, "--workers", "1"]) == 0
    assert (packed / "shard-000000.tar").stat().st_mtime_ns == first

    labeled.mkdir()
    shards = sorted(packed.glob("*.tar"))

    def label() -> int:
        return label_shards(
            lambda images: [i[..., 0] / 255 for i in images], shards, labeled
        ).shards

    with limited(500_000), pytest.raises(DiskFullError, match=r"labeled.*shard-000001\.tar"):
        label()
    assert {p.name for p in labeled.iterdir()} == {"shard-000000.tar"}
    assert label() == 1
    with tarfile.open(labeled / "shard-000001.tar") as tar:
        assert len(tar.getnames()) == 3


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    """All add to one number by reading and writing it: without the lock some would be lost."""
    place = tmp_path / "number"
    place.write_text("0")

    def add(times: int) -> None:
        for _ in range(times):
            with locked(place):
                place.write_text(str(int(place.read_text()) + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, [50] * 4))
    assert place.read_text() == "200"
    assert list(tmp_path.iterdir()) == [place]
