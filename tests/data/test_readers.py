"""Every data set's reader on small files in its format, written by the format's own library."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np
import OpenEXR
import pytest
from PIL import Image

from dafast.cli import main
from dafast.data.readers import NAMES, get_reader
from dafast.data.readers.blendedmvs import read_pfm
from dafast.data.shards import ShardDataset
from dafast.data.sources import SourceError, Unlabeled

ROOT = Path(__file__).resolve().parents[2]
SIZE = (30, 40)


class Made(NamedTuple):
    """A sample on disk: its files, and what a reader is to give."""

    image: Path
    label: Path
    pixels: np.ndarray
    disparity: np.ndarray
    valid: np.ndarray


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        Image.fromarray(array).save(path, quality=95)
    else:
        Image.fromarray(array).save(path)
    return path


def picture(rng: np.random.Generator) -> np.ndarray:
    """Gray blocks, which a JPEG keeps nearly as they are."""
    blocks = rng.integers(0, 256, (SIZE[0] // 10, SIZE[1] // 10, 1), np.uint8)
    return blocks.repeat(10, 0).repeat(10, 1).repeat(3, 2)


def depth_of(rng: np.random.Generator, invalid: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    valid = rng.random(SIZE) > 0.2
    valid[0, 0] = True
    return np.where(valid, rng.uniform(0.5, 50.0, SIZE), invalid).astype(np.float32), valid


def inverse(depth: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return 1.0 / np.where(valid, depth, 1.0).astype(np.float64)


def tartanair(root: Path, rng: np.random.Generator) -> list[Made]:
    made = []
    for i in range(3):
        trajectory = root / "office" / "office" / ("Easy", "Hard")[i % 2] / "P000"
        depth = rng.uniform(0.5, 50.0, SIZE).astype((np.float32, np.float16)[i % 2])
        depth[:5] = 10000.0  # sky
        pixels = picture(rng)
        image = save(trajectory / "image_left" / f"{i:06d}_left.png", pixels)
        save(trajectory / "image_right" / f"{i:06d}_right.png", pixels)
        label = trajectory / "depth_left" / f"{i:06d}_left_depth.npy"
        label.parent.mkdir(exist_ok=True)
        np.save(label, depth)
        valid = np.ones(SIZE, bool)
        made.append(Made(image, label, pixels, inverse(depth, valid), valid))
    return made


def blendedmvs(root: Path, rng: np.random.Generator) -> list[Made]:
    made = []
    for i in range(3):
        scene = root / f"5b{i // 2:022d}"
        pixels, (depth, valid) = picture(rng), depth_of(rng)
        image = save(scene / "blended_images" / f"{i:08d}.jpg", pixels)
        save(scene / "blended_images" / f"{i:08d}_masked.jpg", pixels)
        label = scene / "rendered_depth_maps" / f"{i:08d}.pfm"
        label.parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(label), depth)
        made.append(Made(image, label, pixels, inverse(depth, valid), valid))
    return made


def hrwsi(root: Path, rng: np.random.Generator) -> list[Made]:
    made = []
    for i, split in enumerate(("train", "train", "train", "val")):
        pixels = picture(rng)
        disparity = rng.integers(0, 256, SIZE).astype(np.uint8)
        valid = rng.random(SIZE) > 0.2
        image = save(root / split / "imgs" / f"a{i}.jpg", pixels)
        label = save(root / split / "gts" / f"a{i}.png", disparity)
        save(root / split / "valid_masks" / f"a{i}.png", valid.astype(np.uint8) * 255)
        if split == "train":
            made.append(Made(image, label, pixels, disparity.astype(float), valid))
    return made


def megadepth(root: Path, rng: np.random.Generator) -> list[Made]:
    made = []
    for i in range(3):
        dense = root / "phoenix" / "S6" / "zl548" / "MegaDepth_v1" / f"{i:04d}" / "dense0"
        pixels, (depth, valid) = picture(rng), depth_of(rng)
        image = save(dense / "imgs" / f"{i}_o.{('jpg', 'JPG', 'png')[i]}", pixels)
        label = dense / "depths" / f"{i}_o.h5"
        label.parent.mkdir(exist_ok=True)
        with h5py.File(label, "w") as file:
            file.create_dataset("depth", data=depth)
        made.append(Made(image, label, pixels, inverse(depth, valid), valid))
    return made


def irs(root: Path, rng: np.random.Generator) -> list[Made]:
    made = []
    for i, kind in enumerate(("Home", "Office", "Store")):
        scene = root / kind / "ArchVizInterior03Data"
        pixels = picture(rng)
        valid = rng.random(SIZE) > 0.2
        disparity = np.where(valid, rng.uniform(0.1, 90.0, SIZE), 0.0)
        disparity = disparity.astype((np.float32, np.float16)[i % 2])
        image = save(scene / f"l_{i:05d}.png", pixels)
        save(scene / f"r_{i:05d}.png", pixels)
        label = scene / f"d_{i:05d}.exr"
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        OpenEXR.File(header, {"G": disparity}).write(str(label))
        made.append(Made(image, label, pixels, disparity.astype(float), valid))
    return made


def diml(root: Path, rng: np.random.Generator) -> list[Made]:
    indoor, outdoor = root / "indoor/Cafe/160131/1", root / "outdoor/170721_C0/A"
    sample = root / "LR" / "05. Library"
    files = [
        ("col/in_0_c.png", "up_png/in_0_ud.png", None),
        ("left/1_left.png", "depth/1_depth.png", "conf/1_conf.png"),
        ("color/b_c.png", "depth_filled/b_depth_filled.png", None),
        ("outleft/2.png", "depthmap/2.png", "confidencemap/2.png"),
    ]
    made = []
    for folder, (image, label, mask) in zip(
        (indoor, outdoor, sample, root / "LR"), files, strict=True
    ):
        pixels, (depth, valid) = picture(rng), depth_of(rng)
        millimetres = np.rint(depth * 1000).astype(np.uint16)
        save(folder / image, pixels)
        save(folder / label, millimetres)
        if mask:
            confidence = rng.integers(0, 256, SIZE).astype(np.uint8)
            confidence[0, 0], confidence[0, 1], confidence[0, 2] = 255, 229, 230
            save(folder / mask, confidence)
            valid &= confidence >= 230
        expected = inverse(millimetres / 1000, valid)
        made.append(Made(folder / image, folder / label, pixels, expected, valid))
    return made


def nyuv2(root: Path, rng: np.random.Generator) -> list[Made]:
    made = []
    for i in range(3):
        scene = root / ("kitchen_0028b", "office_0001")[i % 2]
        pixels, (depth, valid) = picture(rng), depth_of(rng)
        millimetres = np.minimum(np.rint(depth * 1000), 10_000).astype(np.uint16)  # as the toolbox
        valid &= millimetres < 10_000
        image = save(scene / f"rgb_{i:05d}.jpg", pixels)
        label = save(scene / f"sync_depth_{i:05d}.png", millimetres)
        made.append(Made(image, label, pixels, inverse(millimetres / 1000, valid), valid))
    return made


def kitti(root: Path, rng: np.random.Generator) -> list[Made]:
    date, made, lines = "2011_09_26", [], []
    for i in range(3):
        drive = f"{date}_drive_{i // 2:04d}_sync"
        pixels, (depth, valid) = picture(rng), depth_of(rng)
        stored = np.rint(depth * 256).astype(np.uint16)
        frame = f"{i:010d}.png"
        image = save(root / date / drive / "image_02" / "data" / frame, pixels)
        truth = root / "train" / drive / "proj_depth" / "groundtruth" / "image_02" / frame
        made.append(Made(image, save(truth, stored), pixels, inverse(stored / 256, valid), valid))
        lines.append(f"{date}/{drive}/image_02/data/{frame} whatever 721.5377")
    lines.append(f"{date}/{drive}/image_02/data/0000000099.png None 721.5377")  # without truth
    (root / "eigen_train_files_with_gt.txt").write_text("\n".join(lines) + "\n")
    return made


MAKE: dict[str, Callable[[Path, np.random.Generator], list[Made]]] = {
    f.__name__: f for f in (tartanair, blendedmvs, hrwsi, megadepth, irs, diml, nyuv2, kitti)
}


def test_every_reader_is_tested() -> None:
    assert set(MAKE) == set(NAMES)
    with pytest.raises(ValueError, match=r"'sintel'; there are: tartanair"):
        get_reader("sintel")


@pytest.mark.parametrize("name", NAMES)
def test_reads_what_was_written(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    made = {m.image.relative_to(tmp_path).as_posix(): m for m in MAKE[name](tmp_path, rng)}
    items = get_reader(name).items(tmp_path)
    assert [item.name for item in items] == sorted(made)
    for item in items:
        image, disparity, mask, _ = item.read()
        _, _, pixels, physical, valid = made[item.name]
        assert image.dtype == np.uint8 and np.abs(image.astype(int) - pixels).mean() < 6
        assert np.array_equal(mask, valid)
        low, high = physical[valid].min(), physical[valid].max()
        assert disparity.dtype == np.float32
        np.testing.assert_allclose(
            disparity[valid], (physical[valid] - low) / (high - low), atol=1e-6
        )
        assert (disparity[~valid] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_packs(name: str, tmp_path: Path, rng: np.random.Generator, caplog, capsys) -> None:
    root, out = tmp_path / "set", tmp_path / "out"
    made = {m.image.relative_to(root).as_posix(): m for m in MAKE[name](root, rng)}
    assert main(["data", "pack", name, str(root), "--out", str(out)]) == 0
    assert f"{len(made)} samples of {len(made)}" in capsys.readouterr().out
    assert get_reader(name).published in caplog.text, "fewer than published: a warning"
    data = ShardDataset(out, labels="physical")
    assert {data.unit(i) for i in range(len(data))} == {get_reader(name).disparity_unit}
    for index, sample in enumerate(data):
        _, _, pixels, physical, valid = made[data.meta(index)["source"]]
        assert np.abs(sample.image.astype(int) - pixels).mean() < 6
        assert np.array_equal(sample.mask, valid)
        step = physical[valid].max() / 65535
        assert np.abs(sample.disparity - physical)[valid].max() <= 0.51 * step
    if name == "tartanair":
        assert (data[0].disparity[:5] < 1e-3).all(), "sky"
    assert main(["data", "pack", name, str(root), "--out", str(out), "--size", "9"]) == 1
    assert "--size is for a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_the_count_that_warns(name: str, tmp_path: Path, rng: np.random.Generator, notices) -> None:
    count = len(MAKE[name](tmp_path, rng))
    for counts, warned in ((((count, count),), False), (((1, 1), (count + 1, 99)), True)):
        notices.clear()
        replace(get_reader(name), counts=counts).items(tmp_path)
        assert bool(notices.messages) == warned


@pytest.mark.parametrize("name", NAMES)
def test_wrong_folder(name: str, tmp_path: Path, rng: np.random.Generator, capsys) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        get_reader(name).items(tmp_path / "nowhere")
    save(tmp_path / "other" / "a.png", picture(rng))
    for command in (["check"], ["pack", "--out", str(tmp_path / "out")]):
        assert main(["data", command[0], name, str(tmp_path), *command[1:]]) == 1
        assert get_reader(name).layout.strip() in capsys.readouterr().err


@pytest.mark.parametrize("name", ["megadepth", "irs"])
def test_missing_library(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, get_reader(name).requires, None)
    with pytest.raises(SourceError, match=re.escape("pip install 'dafast[datasets]'")):
        get_reader(name).items(tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["label cut", "label garbage", "label empty", "label gone",
                                    "image cut", "image gone", "size"])  # fmt: skip
def test_damage(
    name: str, damage: str, tmp_path: Path, rng: np.random.Generator, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "set"
    made = MAKE[name](root, rng)
    bad = made[1]
    what, _, how = damage.partition(" ")
    path = bad.label if what == "label" else bad.image
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "garbage":
        path.write_bytes(rng.bytes(2000))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()
    else:
        save(bad.image, picture(rng)[:20])
    listed = "label gone" if name in ("megadepth", "kitti") else "image gone"
    if damage == listed:
        assert len(get_reader(name).items(root)) == len(made) - 1
        return
    key = re.escape(bad.image.relative_to(root).with_suffix("").as_posix())
    assert main(["data", "check", name, str(root)]) == 1
    text, err = capsys.readouterr()
    assert f"{len(made)} read: {len(made) - 1} good, 1 damaged" in text
    assert re.search(rf"FAILED {key}\.\w+: \w+", text)
    assert "damaged, --max-bad is 1.0%" in err
    assert main(["data", "check", name, str(root), "--max-bad", "0.5"]) == 0
    assert "1 damaged" in capsys.readouterr().out, "never silent"
    assert main(["data", "pack", name, str(root), "--out", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().out
    assert f"{len(made) - 1} samples of {len(made)}" in text and "FAILED" in text


def test_labels_that_are_none(tmp_path: Path, rng: np.random.Generator, capsys, monkeypatch):
    """Ordinal and empty maps are left out and named, and are no damage."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "set"
    made = megadepth(root, rng)
    with h5py.File(made[0].label, "w") as file:
        file["depth"] = rng.choice([-2.0, -1.0, 0.0], SIZE)
    with h5py.File(made[1].label, "w") as file:
        file["depth"] = np.zeros(SIZE)
    items = get_reader("megadepth").items(root)
    with pytest.raises(Unlabeled, match="ordinal"):
        items[0].read()
    assert main(["data", "check", "megadepth", str(root)]) == 0
    text = capsys.readouterr().out
    assert "1 good, 0 damaged, 2 without a label" in text
    assert f"left out {items[0].name}: Unlabeled: ordinal" in text
    assert main(["data", "pack", "megadepth", str(root), "--out", str(tmp_path / "out")]) == 0
    assert "1 samples of 3" in capsys.readouterr().out
    for item in made[2:]:
        with h5py.File(item.label, "w") as file:
            file["disparity"] = np.ones(SIZE)
    assert main(["data", "check", "megadepth", str(root), "--max-bad", "1"]) == 1, "nothing good"
    assert "no array 'depth', only ['disparity']" in capsys.readouterr().out


def test_exr_of_several_channels(tmp_path: Path, rng: np.random.Generator) -> None:
    made = irs(tmp_path, rng)
    planes = {c: rng.random(SIZE).astype(np.float32) for c in "RGB"}
    OpenEXR.File({}, planes).write(str(made[0].label))
    with pytest.raises(SourceError, match=r"\['B', 'G', 'R'\]; one is expected"):
        get_reader("irs").items(tmp_path)[0].read()


@pytest.mark.parametrize("order", ["<", ">"])
def test_pfm_in_either_byte_order(order: str, tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.random(SIZE).astype(f"{order}f4")
    scale = b"-1.0" if order == "<" else b"1.0"
    path = tmp_path / "a.pfm"
    path.write_bytes(b"Pf\n40 30\n" + scale + b"\n" + values[::-1].tobytes())
    assert np.array_equal(read_pfm(path), values.astype(np.float64))
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), values.astype(np.float32))


def test_the_sheet(tmp_path: Path, rng: np.random.Generator, capsys) -> None:
    root = tmp_path / "set"
    made = hrwsi(root, rng)
    target = tmp_path / "sheet.png"
    mask = np.zeros(SIZE, np.uint8)
    mask[:, 20:] = 255
    disparity = np.repeat(np.arange(SIZE[1], dtype=np.uint8)[None] * 5, SIZE[0], 0)
    for item in made:
        save(item.label, disparity)
        save(item.label.parent.parent / "valid_masks" / item.label.name, mask)
    assert main(["data", "check", "hrwsi", str(root), "--sheet", str(target), "--limit", "2",
                 "--shown", "1"]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert "2 read: 2 good" in text and "50.0% of the pixels valid" in text
    page = np.asarray(Image.open(target)).astype(int)
    # One sample: 144 x 192 for each of three parts, under a line of text.
    top, left, height, width, step = 18, 4, 144, 192, 196
    parts = [page[top : top + height, left + i * step : left + i * step + width] for i in range(3)]
    assert (parts[2][:, : width // 2 - 2] == 0).all() and (
        parts[2][:, width // 2 + 2 :] == 255
    ).all()
    assert (parts[1][:, : width // 2 - 2] == 128).all(), "no label: gray"
    far, near = parts[1][70, width // 2 + 3], parts[1][70, width - 3]
    assert far[2] > far[0] and near[0] > near[2], "blue is far, red is near"
    assert np.abs(parts[0][::5, ::5].mean((0, 1)) - made[0].pixels.mean((0, 1))).max() < 8


def test_a_list_is_checked(tmp_path: Path, rng: np.random.Generator, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", picture(rng))
    depth, valid = depth_of(rng)
    np.save(tmp_path / "a.npy", depth)
    (tmp_path / "mine.csv").write_text("image,depth\na.png,a.npy\nb.png,b.npy\n")
    assert main(["data", "check", "mine.csv"]) == 1
    text = capsys.readouterr().out
    assert f"1 good, 1 damaged, 0 without a label; {valid.mean():.1%}" in text
    assert "FAILED b.png: FileNotFoundError" in text
    assert Image.open("mine-check.png").size[0] > 3 * 192
    assert main(["data", "check", "."]) == 1
    assert "put the name of its data set before it, one of tartanair" in capsys.readouterr().err
    assert main(["data", "check", "sintel", "."]) == 1
    error = capsys.readouterr().err
    assert "no data set 'sintel'; there are: tartanair" in error and "sa1b" in error
    for command in ("check", "pack"):
        extra = ["--out", "out"] if command == "pack" else []
        for name, message in (("sintle", "no data set; there are: tartanair"),
                              ("sa1b", "sa1b: missing path")):  # fmt: skip
            assert main(["data", command, name, *extra]) == 1
            error = capsys.readouterr().err
            assert message in error and error.count("\n") == 1
        assert main(["data", command, "nowhere.csv", *extra]) == 1
        assert "nowhere.csv: no such file or folder" in capsys.readouterr().err


def test_nyuv2_by_its_list(tmp_path: Path, rng: np.random.Generator) -> None:
    made = nyuv2(tmp_path / "sync", rng)
    names = [m.image.relative_to(tmp_path / "sync").as_posix() for m in made]
    lines = [f"/{name} /{name.replace('rgb', 'sync_depth').replace('jpg', 'png')} 518.8579"
             for name in names[1:]]  # fmt: skip
    split = tmp_path / "nyudepthv2_train_files_with_gt.txt"
    split.write_text("\n".join(lines) + "\n/gone/rgb_00000.jpg /gone/sync_depth_00000.png 1\n")
    items = get_reader("nyuv2").items(tmp_path)
    assert [item.name for item in items] == sorted(f"sync/{name}" for name in names[1:])
    assert all(item.read().mask.any() for item in items)
    split.write_text("one word\nalone\n")
    with pytest.raises(SourceError, match=r'line 2: .alone. is not "IMAGE DEPTH FOCAL"'):
        get_reader("nyuv2").items(tmp_path)


def test_kitti_in_both_forms_and_places(tmp_path: Path, rng: np.random.Generator) -> None:
    made = kitti(tmp_path, rng)
    whole = [item.name for item in get_reader("kitti").items(tmp_path)]
    assert len(whole) == len(made)
    (tmp_path / "eigen_train_files_with_gt.txt").unlink()
    with pytest.raises(SourceError, match="no pictures of kitti found"):
        get_reader("kitti").items(tmp_path)
    folder = made[0].image.parts[-4]
    (tmp_path / "train_files.txt").write_text(f"2011_09_26/{folder} 0 l\n2011_09_26/{folder} 1 l\n")
    (tmp_path / "raw").mkdir()
    (tmp_path / "2011_09_26").rename(tmp_path / "raw" / "2011_09_26")
    (tmp_path / "depth").mkdir()
    (tmp_path / "train").rename(tmp_path / "depth" / "train")
    items = get_reader("kitti").items(tmp_path)
    assert [item.name for item in items] == [f"raw/{name}" for name in whole[:2]]
    (tmp_path / "train_files.txt").write_text("2011_09_26 x\n")
    with pytest.raises(SourceError, match=r"line 1: .* is neither"):
        get_reader("kitti").items(tmp_path)


@pytest.mark.parametrize("share", ["-0.1", "1.5", "x"])
def test_a_share_is_one(share: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["data", "check", "irs", ".", "--max-bad", share])
    assert share in capsys.readouterr().err


def test_the_table_in_the_docs() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for name in NAMES:
        reader = get_reader(name)
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` "))
        for fact in (reader.units, reader.invalid, reader.license, reader.published):
            assert fact in row, f"{name}: {fact!r} is not in its row of docs/data.md"
