"""Shards and the `webdataset` library: each reads what the other wrote."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from dafast.cli import main
from dafast.data.labeling import label_shards
from dafast.data.remote import place_of
from dafast.data.shards import ShardDataset, ShardError
from dafast.data.sky import write_sky
from dafast.data.tars import expand_shards
from tests.training import tiny

Images = dict[str, np.ndarray]


def teacher(images: list[np.ndarray]) -> list[np.ndarray]:
    """A map of half the picture's resolution, so that labels say their size."""
    return [image[::2, ::2].mean(-1).astype(np.float32) for image in images]


def pixels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (*rng.integers(8, 24, 2), 3), np.uint8)


def through(path: str | Path | list[str], *decode: Any) -> list[dict[str, Any]]:
    """All samples as the library gives them."""
    data = wds.WebDataset(str(path) if isinstance(path, Path) else path, shardshuffle=False)
    return list(data.decode(*decode)) if decode else list(data)


def written_by_the_library(
    pattern: str, rng: np.random.Generator, suffixes: tuple[str, ...] = ("png",), count: int = 5
) -> tuple[Images, list[str]]:
    """Shards of three samples with a class, a text and a picture; the pictures by key, the shards.

    Keys lie in folders with dots in their names, as one gets from packing a tree of pictures.
    """
    images, shards = {}, []
    with wds.ShardWriter(pattern, maxcount=3, verbose=0, post=shards.append) as writer:
        for i in range(count):
            key, suffix = f"train.v2/n{i % 2:04d}/pic-{i:04d}", suffixes[i % len(suffixes)]
            kind = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "png": "PNG"}[suffix]
            options = {"lossless": True} if kind == "WEBP" else {}
            data = tiny.encode(pixels(rng), kind, **options)
            images[key] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            writer.write({"__key__": key, suffix: data, "cls": i, "txt": "a picture",
                          "json": {"id": i}})  # fmt: skip
    return images, shards


def test_the_library_reads_packed_pictures(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "photos").mkdir()
    made = [pixels(rng) for _ in range(5)]
    for i, image in enumerate(made):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.jpg", quality=90)
    out = tmp_path / "packed"
    assert main(["data", "pack", str(tmp_path / "photos"), "--out", str(out),
                 "--shard-size", "2"]) == 0  # fmt: skip
    data = ShardDataset(out, labels="none")
    found = through(f"{out}/shard-{{000000..000002}}.tar", "rgb8")
    assert [sample["__key__"] for sample in found] == [data.key(i) for i in range(5)]
    for i, sample in enumerate(found):
        assert np.array_equal(sample["jpg"], data[i].image)


def test_the_library_reads_labels(tmp_path: Path, seed: int) -> None:
    source, out = tiny.write_shards(tmp_path / "in", 2, 3, seed), tmp_path / "out"
    out.mkdir()
    label_shards(teacher, expand_shards(source), out)
    for folder in (source, out):
        data = ShardDataset(folder, labels="physical")
        found = through([str(shard) for shard in data.shards])
        assert [sample["__key__"] for sample in found] == [data.key(i) for i in range(6)]
        for i, sample in enumerate(found):
            assert data.image_file(i) in (sample.get("jpg"), sample.get("png"))
            assert sample["disparity.png"] == data.label_file(i)
            meta = json.loads(sample["json"])
            value = np.asarray(Image.open(io.BytesIO(sample["disparity.png"]))).astype(np.float64)
            scale = meta.get("disparity_scale", meta.get("disparity_max", 0) / 65535)
            expected = meta.get("disparity_offset", 0) + scale * value
            np.testing.assert_allclose(data[i].disparity, expected, rtol=1e-5, atol=1e-6)


def test_reads_what_the_library_wrote(tmp_path: Path, rng: np.random.Generator) -> None:
    suffixes = ("jpg", "jpeg", "png", "webp")
    images, shards = written_by_the_library(f"{tmp_path}/a-%06d.tar", rng, suffixes)
    data = ShardDataset(tmp_path, labels="none")
    assert [data.key(i) for i in range(len(data))] == list(images)
    for i, image in enumerate(images.values()):
        assert np.array_equal(data[i].image, image)
        assert data.meta(i) == {"id": i}
    assert not data.labeled
    out = tmp_path / "labeled"
    out.mkdir()
    report = label_shards(teacher, expand_shards(tmp_path), out)
    assert (report.shards, report.images, report.failures) == (len(shards), 5, [])
    labeled = ShardDataset(out)
    for i, image in enumerate(images.values()):
        assert np.array_equal(labeled[i].image, image)
        assert labeled.image_file(i) == data.image_file(i)
        assert labeled.meta(i)["id"] == i
    stored = {suffix for sample in through(f"{out}/a-{{000000..000001}}.tar") for suffix in sample}
    assert {"jpg", "png", "webp"} <= stored


def test_labels_that_the_library_wrote(tmp_path: Path, rng: np.random.Generator) -> None:
    expected = []
    with wds.ShardWriter(f"{tmp_path}/%06d.tar", maxcount=2, verbose=0) as writer:
        for i in range(3):
            image = pixels(rng)
            code = rng.integers(0, 65536, image.shape[:2], np.uint16)
            largest = float(rng.uniform(0.5, 2))
            writer.write({"__key__": f"{i:03d}", "png": image,
                          "disparity.png": tiny.encode(code, "PNG"),
                          "json": {"disparity_max": largest}})  # fmt: skip
            expected.append((image, code * (largest / 65535)))
    data = ShardDataset(tmp_path, labels="physical")
    assert data.labeled
    for i, (image, disparity) in enumerate(expected):
        assert np.array_equal(data[i].image, image)
        np.testing.assert_allclose(data[i].disparity, disparity, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz"])
def test_compressed_shards(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    images, shards = written_by_the_library(f"{source}/a-%06d.{suffix}", rng)
    assert Path(shards[0]).read_bytes()[:2] == b"\x1f\x8b", "compressed as a whole"
    assert [str(shard) for shard in expand_shards(source)] == shards
    with pytest.raises(ShardError, match=r"a-000000\.t.*gz is compressed.*gunzip a-0.*dafast lab"):
        ShardDataset(source, labels="none")
    assert label_shards(teacher, expand_shards(source), out).images == len(images)
    assert label_shards(teacher, expand_shards(source), out).kept == len(shards), "a second run"
    data = ShardDataset(out)
    assert [shard.name for shard in data.shards] == ["a-000000.tar", "a-000001.tar"]
    for i, image in enumerate(images.values()):
        assert np.array_equal(data[i].image, image)
    report = write_sky(lambda batch: [i[..., 0] >= 0 for i in batch], expand_shards(source))
    assert report.with_sky == len(images)
    assert (source / "a-000000.sky.tar").is_file(), "where the masks of the unpacked shard are"
    for shard in map(Path, shards):
        shard.with_name(f"{shard.name.partition('.')[0]}.tar").write_bytes(
            gzip.decompress(shard.read_bytes())
        )
    assert len(ShardDataset(source, labels="none")) == len(images), "the unpacked ones are taken"
    for shard in map(Path, shards):
        shard.unlink()
    assert len(ShardDataset(source, labels="none")) == len(images)


def test_compressed_and_damaged(tmp_path: Path, rng: np.random.Generator) -> None:
    written_by_the_library(f"{tmp_path}/a-%06d.tar.gz", rng, count=3)
    shard = tmp_path / "a-000000.tar.gz"
    whole = shard.read_bytes()
    (tmp_path / "out").mkdir()
    for damaged in (whole[: len(whole) // 2], b"no archive" * 9, b""):
        shard.write_bytes(damaged)
        report = label_shards(teacher, [shard], tmp_path / "out")
        assert [name for name, _ in report.failures] == ["a-000000.tar.gz"]
        assert not list((tmp_path / "out").glob("*.tar"))
    shard.write_bytes(whole)
    assert label_shards(teacher, [shard], tmp_path / "out").images == 3


def test_compressed_behind_a_url(tmp_path: Path, rng: np.random.Generator, monkeypatch) -> None:
    images, shards = written_by_the_library(f"{tmp_path}/a-%06d.tar.gz", rng)
    monkeypatch.setenv("DAFAST_CACHE", str(tmp_path / "cache"))
    folder = f"memory://{tmp_path.name}-{rng.integers(1 << 60)}"
    for shard in map(Path, shards):
        (place_of(folder) / shard.name).write_bytes(shard.read_bytes())
    (tmp_path / "out").mkdir()
    assert label_shards(teacher, expand_shards(folder), tmp_path / "out").images == len(images)
    with pytest.raises(ShardError, match="is compressed"):
        ShardDataset(folder, labels="none")


def test_names_of_shards(tmp_path: Path, rng: np.random.Generator) -> None:
    """Braces and lists mean what they mean to the library; nothing is run."""
    _, shards = written_by_the_library(f"{tmp_path}/a-%06d.tar", rng, count=9)
    written_by_the_library(f"{tmp_path}/b.c-%06d.tar", rng, count=3)
    for text in (
        f"{tmp_path}/a-{{000000..000002}}.tar",
        f"{tmp_path}/a-{{000000,000002}}.tar",
        f"{tmp_path}/a-000001.tar::{tmp_path}/b.c-{{000000..000000}}.tar",
        f"{tmp_path}/{{a-00000{{1..2}},b.c-000000}}.tar",
    ):
        expected, found = wds.shardlists.expand_urls(text), list(map(str, expand_shards(text)))
        assert found == expected or (text.count("{") > 1 and sorted(found) == sorted(expected))
        assert len(ShardDataset(text, labels="none")) == len(through(text))
    memory = expand_shards("memory://x/{0..1}.tar::memory://y/a.tar.gz")
    assert [str(shard) for shard in memory] == [
        *("memory://x/0.tar", "memory://x/1.tar", "memory://y/a.tar.gz")
    ]
    marker = tmp_path / "ran"
    for text in (f"pipe:touch {marker}", f"pipe:cat {shards[0]}::pipe:touch {marker}"):
        with pytest.raises(ShardError, match="commands are not run; name a file or URL"):
            expand_shards(text)
    assert not marker.exists()


@pytest.mark.parametrize("first", [True, False])
def test_the_picture_is_not_the_mask_beside_it(
    first: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    image, mask = pixels(rng), pixels(rng)
    members = {"png": mask, "webp": tiny.encode(image, "WEBP", lossless=True)}
    order = sorted(members, reverse=first)
    with wds.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(3):
            writer.write({"__key__": f"{i}", **{s: members[s] for s in order}, "json": [i, "list"]})
    data = ShardDataset(tmp_path / "a.tar", labels="none")
    assert len(data) == 3
    for i in range(3):
        assert np.array_equal(data[i].image, image)
        assert data.meta(i) == {"json": [i, "list"]}, "a list is kept under a name"
