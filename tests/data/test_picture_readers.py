"""Every unlabeled set's reader on small files in its form, as its publisher packs them."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from dafast.cli import main
from dafast.data.decode import decode_image
from dafast.data.labeling import label_shards
from dafast.data.readers import NAMES, PICTURE_NAMES, get_picture_reader
from dafast.data.shards import ShardDataset
from dafast.data.sources import SourceError

ROOT = Path(__file__).resolve().parents[2]

Made = dict[str, bytes]
"""Name as the reader gives it -> the picture's file."""


def jpeg(rng: np.random.Generator, kind: str = "JPEG") -> bytes:
    blocks = rng.integers(0, 256, (3, 4, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    buffer = io.BytesIO()
    Image.fromarray(blocks).save(buffer, kind, quality=90)
    return buffer.getvalue()


def write(root: Path, made: Made, name: str, data: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    made[name] = data


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def hexadecimal(rng: np.random.Generator, digits: int) -> str:
    return "".join(rng.choice(list("0123456789abcdef"), digits))


def sa1b(root: Path, rng: np.random.Generator) -> Made:
    made: Made = {}
    for archive in range(2):
        members = {}
        for number in range(2):
            name = f"sa_{archive * 1000 + number}"
            members[f"./{name}.jpg"] = jpeg(rng)
            members[f"./{name}.json"] = json.dumps({"annotations": [{"id": 1}]}).encode()
            made[f"sa_{archive:06d}.tar/{name}.jpg"] = members[f"./{name}.jpg"]
        write_tar(root / f"sa_{archive:06d}.tar", members)
    write(root, made, "sa_000002/sa_77.jpg", jpeg(rng))  # an archive that was unpacked
    (root / "sa_000002/sa_77.json").write_text("{}")
    return made


def imagenet21k(root: Path, rng: np.random.Generator) -> Made:
    made: Made = {}
    members = {f"n01440764_{i}.JPEG": jpeg(rng) for i in (10026, 18)}
    write_tar(root / "winter21_whole" / "n01440764.tar", members)
    made |= {f"winter21_whole/n01440764.tar/{name}": data for name, data in members.items()}
    write(root, made, "winter21_whole/n00004475/n00004475_6590.JPEG", jpeg(rng))
    return made


def lsun(root: Path, rng: np.random.Generator) -> Made:
    made: Made = {}
    for folder, kind in (("bedroom_train_lmdb", "WEBP"), ("tower_val_lmdb", "JPEG")):
        (root / folder).mkdir(parents=True)
        with lmdb.open(str(root / folder), map_size=2**20) as env, env.begin(write=True) as txn:
            for _ in range(2):
                key, data = hexadecimal(rng, 40), jpeg(rng, kind)
                txn.put(key.encode(), data)
                made[f"{folder}/{key}"] = data
    return made


def bdd100k(root: Path, rng: np.random.Generator) -> Made:
    made: Made = {}
    for folder, end in (("images/100k/train", ""), ("images/100k/val", ""), ("frames", "-0000007")):
        name = f"{hexadecimal(rng, 8)}-{hexadecimal(rng, 8)}{end}"
        write(root, made, f"{folder}/{name}.jpg", jpeg(rng))
    (root / "labels").mkdir()
    (root / "labels" / "0000f77c-6257be58.json").write_text("{}")
    return made


def openimages(root: Path, rng: np.random.Generator) -> Made:
    made: Made = {}
    for folder in ("train_0", "train_f", "validation"):
        write(root, made, f"{folder}/{hexadecimal(rng, 16)}.jpg", jpeg(rng))
    return made


def places365(root: Path, rng: np.random.Generator) -> Made:
    made: Made = {}
    for name in (
        *("data_large/a/airfield/00000001.jpg", "data_large/s/swimming_pool/indoor/00000002.jpg"),
        *("val_large/Places365_val_00000001.jpg", "test_large/Places365_test_00000003.jpg"),
    ):
        write(root, made, name, jpeg(rng))
    return made


def landmarks(root: Path, rng: np.random.Generator) -> Made:
    made: Made = {}
    members = {}
    for _ in range(2):
        name = hexadecimal(rng, 16)
        members[f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg"] = jpeg(rng)
    write_tar(root / "train" / "images_000.tar", members)
    made |= {f"train/images_000.tar/{name}": data for name, data in members.items()}
    name = hexadecimal(rng, 16)
    write(root, made, f"test/{name[0]}/{name[1]}/{name[2]}/{name}.jpg", jpeg(rng))
    return made


def objects365(root: Path, rng: np.random.Generator) -> Made:
    made: Made = {}
    for name in ("train/patch0/objects365_v1_00000000", "train/patch50/objects365_v2_02081009"):
        write(root, made, f"{name}.jpg", jpeg(rng))
    write(root, made, "val/patch0/objects365_v1_00000016.jpg", jpeg(rng))
    return made


MAKE: dict[str, Callable[[Path, np.random.Generator], Made]] = {
    f.__name__: f
    for f in (
        *(sa1b, imagenet21k, lsun, bdd100k, openimages, places365, landmarks),
        objects365,
    )
}


def test_every_reader_is_tested() -> None:
    assert set(MAKE) == set(PICTURE_NAMES)
    assert not set(PICTURE_NAMES) & set(NAMES)
    with pytest.raises(ValueError, match=r"'coco'; there are: sa1b"):
        get_picture_reader("coco")


@pytest.mark.parametrize("name", PICTURE_NAMES)
def test_finds_and_reads(name: str, tmp_path: Path, rng: np.random.Generator, notices) -> None:
    made = MAKE[name](tmp_path, rng)
    for other in ("notes.txt", "thumbnail.jpg", ".cache/" + next(iter(made)).replace(".tar/", "/")):
        write(tmp_path, {}, other, jpeg(rng))
    reader = get_picture_reader(name)
    items = reader.items(tmp_path)
    assert [item.name for item in items] == sorted(made)
    assert reader.published in notices.text, "fewer than published: a warning"
    for item in items:
        members = item.load()
        assert json.loads(members["json"]) == {"source": item.name}
        original = decode_image(made[item.name]).astype(int)
        assert np.abs(decode_image(members["jpg"]).astype(int) - original).mean() < 8
        if made[item.name].startswith(b"\xff\xd8"):
            assert members["jpg"] == made[item.name], "a JPEG stays as it is"
        assert item.read is None
    assert [item.name for item in items[1:3]] == sorted(made)[1:3]
    small = decode_image(reader.items(tmp_path, size=15)[0].load()["jpg"])
    assert small.shape == (15, 20, 3)


@pytest.mark.parametrize("name", PICTURE_NAMES)
def test_the_count_that_warns(name: str, tmp_path: Path, rng: np.random.Generator, notices) -> None:
    count = len(MAKE[name](tmp_path, rng))
    for counts, warned in ((((count, count),), False), (((1, 1), (count + 1, 99)), True)):
        notices.clear()
        replace(get_picture_reader(name), counts=counts).items(tmp_path)
        assert bool(notices.messages) == warned


@pytest.mark.parametrize("name", PICTURE_NAMES)
def test_packs_and_labels(
    name: str, tmp_path: Path, rng: np.random.Generator, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root, out = tmp_path / "set", tmp_path / "out"
    made = MAKE[name](root, rng)
    assert main(["data", "check", name, str(root)]) == 0
    text = capsys.readouterr().out
    assert f"{len(made)} read: {len(made)} good, 0 damaged\n" in text
    assert get_picture_reader(name).license in text
    assert Image.open(f"{name}-check.png").size[0] > 192
    command = ["data", "pack", name, str(root), "--out", str(out), "--shard-size", "2"]
    for _ in range(2):  # the second run continues from the first
        assert main(command) == 0
        assert f"{len(made)} samples of {len(made)}" in capsys.readouterr().out
    (tmp_path / "labeled").mkdir()
    report = label_shards(
        lambda images: [image[..., 0].astype(np.float32) for image in images],
        sorted(out.glob("*.tar")),
        tmp_path / "labeled",
    )
    assert (report.images, report.failures) == (len(made), [])
    data = ShardDataset(tmp_path / "labeled")
    assert [data.meta(i)["source"] for i in range(len(data))] == sorted(made)


def test_archives_of_sa1b_are_shards_as_they_are(tmp_path: Path, rng: np.random.Generator) -> None:
    made = sa1b(tmp_path, rng)
    (tmp_path / "out").mkdir()
    report = label_shards(
        lambda images: [image[..., 0].astype(np.float32) for image in images],
        sorted(tmp_path.glob("*.tar")),
        tmp_path / "out",
    )
    assert (report.shards, report.images, report.failures) == (2, 4, [])
    data = ShardDataset(tmp_path / "out")
    for i in range(4):
        assert data.image_file(i) == made[data.name(i).replace("/./", "/") + ".jpg"]
        assert data.meta(i)["annotations"] == [{"id": 1}]


@pytest.mark.parametrize("name", PICTURE_NAMES)
def test_wrong_folder(name: str, tmp_path: Path, rng: np.random.Generator, capsys) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        get_picture_reader(name).items(tmp_path / "nowhere")
    write(tmp_path, {}, "other/picture.jpg", jpeg(rng))
    for command in (["check"], ["pack", "--out", str(tmp_path / "out")]):
        assert main(["data", command[0], name, str(tmp_path), *command[1:]]) == 1
        assert get_picture_reader(name).layout.strip() in capsys.readouterr().err


@pytest.mark.parametrize("name", PICTURE_NAMES)
def test_damage_is_named_and_left_out(
    name: str, tmp_path: Path, rng: np.random.Generator, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "set"
    made = MAKE[name](root, rng)
    bad = next(n for n in sorted(made) if name == "lsun" or ".tar/" not in n)
    if name == "lsun":
        folder, _, key = bad.rpartition("/")
        with lmdb.open(str(root / folder)) as env, env.begin(write=True) as txn:
            txn.put(key.encode(), made[bad][:200])
    else:
        (root / bad).write_bytes(made[bad][:200])
    assert main(["data", "check", name, str(root)]) == 1
    text = capsys.readouterr().out
    assert f"{len(made) - 1} good, 1 damaged" in text and f"FAILED {bad}: " in text
    assert main(["data", "pack", name, str(root), "--out", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().out
    assert f"{len(made) - 1} samples of {len(made)}" in text and f"FAILED {bad}: " in text


@pytest.mark.parametrize("name", ["sa1b", "imagenet21k", "landmarks"])
def test_an_archive_that_is_cut(name: str, tmp_path: Path, rng: np.random.Generator, notices):
    made = MAKE[name](tmp_path, rng)
    archive = next(tmp_path.rglob("*.tar"))
    whole = [item.name for item in get_picture_reader(name).items(tmp_path)]
    with tarfile.open(archive) as tar:
        last = [m for m in tar.getmembers() if not m.name.endswith(".json")][-1]
    copy = archive.with_name("b.tar")  # its own name: what is in a tar is remembered
    copy.write_bytes(archive.read_bytes()[: last.offset + 300])
    archive.unlink()
    notices.clear()
    items = get_picture_reader(name).items(tmp_path)
    assert "b.tar cannot be read after" in notices.text
    assert 0 < len(items) < len(whole) == len(made)
    for item in items:
        item.load()


def test_a_damaged_database(tmp_path: Path, capsys) -> None:
    (tmp_path / "a_train_lmdb").mkdir()
    (tmp_path / "a_train_lmdb" / "data.mdb").write_bytes(b"no database" * 1000)
    assert main(["data", "check", "lsun", str(tmp_path)]) == 1
    assert "a_train_lmdb is no LMDB that can be read" in capsys.readouterr().err


def test_missing_library(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(SourceError, match=re.escape("pip install 'dafast[datasets]'")):
        get_picture_reader("lsun").items(tmp_path)


def test_the_table_in_the_docs() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for name in PICTURE_NAMES:
        reader = get_picture_reader(name)
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` "))
        for fact in (reader.license, reader.published):
            assert fact in row, f"{name}: {fact!r} is not in its row of docs/data.md"
