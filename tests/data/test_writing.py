"""Files that are written by one process, whole or not at all."""

from __future__ import annotations

import gzip
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafast.cli import main
from dafast.data.labeling import label_shards
from dafast.data.remote import local_copy, place_of
from dafast.data.writing import claim, locked, read_failures, write_failures
from dafast.evaluation.cache import PredictionCache
from dafast.files import DiskFullError
from dafast.models import DepthAnything
from dafast.pointcloud import intrinsics_from_fov, point_cloud
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


@pytest.mark.slow
def test_a_full_disk_leaves_what_is_finished(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    """Packing and labelling: one line that names the file, and the same command continues."""
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


def test_a_full_disk_names_the_cached_prediction(tmp_path: Path, rng: np.random.Generator) -> None:
    model = DepthAnything("nano").eval()
    cache = PredictionCache(tmp_path, model, {})
    image = rng.integers(0, 256, (300, 400, 3), np.uint8)
    prediction = rng.random((300, 400), np.float32)
    with limited(100_000), pytest.raises(DiskFullError, match=r"cannot write .*\.npy: File too"):
        cache.write(image, prediction)
    assert [p.name for p in cache.folder.iterdir()] == ["settings.json"]
    assert cache.read(image) is None
    cache.write(image, prediction)
    assert np.array_equal(cache.read(image), prediction)


def test_a_full_disk_names_the_point_cloud(tmp_path: Path, rng: np.random.Generator) -> None:
    depth = rng.uniform(1, 9, (100, 120)).astype(np.float32)
    image = rng.integers(0, 256, (100, 120, 3), np.uint8)
    cloud = point_cloud(depth, image, intrinsics_from_fov(60, 100, 120))
    with limited(100_000), pytest.raises(DiskFullError, match=r"cannot write .*c\.ply: File too"):
        cloud.save(tmp_path / "c.ply")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_names_the_synthetic_shard(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["synth", "--scenes", "1", "--workers", "1", "--out", str(tmp_path)]
    command += ["--size", "64", "48"]
    with limited(2000):
        assert main(command) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"cannot write {tmp_path / 'synthetic-000000.tar'}: " in error
    assert [p.name for p in tmp_path.iterdir()] == ["synthetic.json"]


@pytest.mark.parametrize("name", ["a.tar.gz", "memory"])
def test_a_full_disk_for_temporary_copies_is_named(name: str, tmp_path: Path) -> None:
    content = b"x" * 200_000
    if name == "memory":
        place = place_of(f"memory://{tmp_path.name}/a.tar")
        place.write_bytes(content)
    else:
        place = tmp_path / name
        place.write_bytes(gzip.compress(content))
    with (
        limited(100_000),
        pytest.raises(DiskFullError, match=r"a\.tar.*\(TMPDIR\)"),
        local_copy(place),
    ):
        pass
    with local_copy(place) as copy:
        assert copy.read_bytes() == content


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
