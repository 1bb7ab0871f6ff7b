"""Pictures and lists of pictures to shards, read back by what reads shards."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafast.cli import main
from dafast.data.lists import list_source
from dafast.data.shards import ShardDataset
from dafast.data.sources import SourceError, folder_source
from tests.data.packing import make_photos, pack, picture
from tests.data.test_readers import MAKE
from tests.training import tiny


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    return make_photos(tmp_path / "photos", rng)


def test_a_folder(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert pack(photos, tmp_path / "out", "--shard-size", "4") == 0
    assert "6 samples of 6" in capsys.readouterr().out
    data = ShardDataset(tmp_path / "out", labels="none")
    assert [p.name for p in data.shards] == ["shard-000000.tar", "shard-000001.tar"]
    names = [data.meta(i)["source"] for i in range(6)]
    assert names == [*(f"{i}.jpg" for i in range(5)), "below/b.png"]
    assert data.image_file(0) == (photos / "0.jpg").read_bytes(), "a plain JPEG stays as it is"
    original = np.asarray(Image.open(photos / "below" / "b.png")).astype(int)
    assert np.abs(data[5].image - original).mean() < 6
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [shard["samples"] for shard in manifest["shards"].values()] == [4, 2]
    for name, shard in manifest["shards"].items():
        content = (tmp_path / "out" / name).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()


def test_goes_on_where_it_stopped_and_refuses_another_set(
    photos: Path, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert pack(photos, out, "--shard-size", "2") == 0
    shards = sorted(out.glob("*.tar"))
    whole = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    before = shards[0].stat().st_mtime_ns
    assert pack(photos, out, "--shard-size", "2") == 0
    assert [shard.read_bytes() for shard in shards] == whole
    assert shards[0].stat().st_mtime_ns == before
    capsys.readouterr()
    assert pack(photos, out, "--shard-size", "3") == 1
    assert "differ in shard_size" in capsys.readouterr().err
    picture(photos / "9.jpg", rng)
    assert pack(photos, out, "--shard-size", "2") == 1
    assert "differ in items, names" in capsys.readouterr().err


@pytest.mark.parametrize("size", [20, 40, 100])
def test_large_pictures_are_scaled_down(photos: Path, tmp_path: Path, size: int) -> None:
    assert pack(photos, tmp_path / "out", "--size", str(size)) == 0
    data = ShardDataset(tmp_path / "out", labels="none")
    assert {min(sample.image.shape[:2]) for sample in data} == {min(size, 40)}
    assert data[0].image.shape[1] / data[0].image.shape[0] == 1.5


def test_turned_pictures_are_upright(tmp_path: Path, rng: np.random.Generator) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = picture(tmp_path / "in" / "a.jpg", rng, exif=exif, quality=95)
    assert pack(tmp_path / "in", tmp_path / "out") == 0
    turned = ShardDataset(tmp_path / "out", labels="none")[0].image.astype(int)
    assert np.abs(turned - np.rot90(pixels, -1)).mean() < 6


def test_bad_pictures_are_named_and_left_out(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (photos / "1.jpg").write_bytes(b"no picture")
    (photos / "3.jpg").write_bytes((photos / "3.jpg").read_bytes()[:200])
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(photos / "z.png")
    for _ in range(2):
        assert pack(photos, tmp_path / "out") == 1
        text = capsys.readouterr().out
        assert "4 samples of 7" in text
        for name in ("1.jpg", "3.jpg", "z.png"):
            assert f"FAILED {name}: " in text
    assert len(ShardDataset(tmp_path / "out", labels="none")) == 4


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
@pytest.mark.parametrize("kind", ["depth", "disparity"])
def test_a_list(suffix: str, kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    rows, expected, valid = [], [], []
    for i in range(4):
        picture(tmp_path / "images" / f"{i}.jpg", rng)
        values = rng.integers(1, 60000, (40, 60)).astype(np.uint16)
        known = rng.random((40, 60)) > 0.2
        row = {"image": f"images/{i}.jpg", kind: f"{i}.png", "scale": "0.001"}
        if i == 1:
            row[kind] = "1.npy"
            np.save(tmp_path / "1.npy", np.where(known, values, np.nan))
        elif i == 2:
            Image.fromarray(values).save(tmp_path / "2.png")
            Image.fromarray(known.astype(np.uint8) * 255).save(tmp_path / "mask.png")
            row["mask"] = "mask.png"
        else:
            marker = 65535 if i == 3 else 0
            Image.fromarray(np.where(known, values, marker).astype(np.uint16)).save(
                tmp_path / f"{i}.png"
            )
            if i == 3 or kind == "disparity":
                row["invalid"] = str(marker)
        rows.append(row)
        scaled = values * 0.001
        expected.append(1 / scaled if kind == "depth" else scaled)
        valid.append(known)
    path = tmp_path / f"list.{suffix}"
    if suffix == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["image", kind, "mask", "scale", "invalid"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]")
    assert pack(path, tmp_path / "out") == 0
    data = ShardDataset(tmp_path / "out", labels="physical")
    assert len(data) == 4
    for i, sample in enumerate(data):
        assert np.array_equal(sample.mask, valid[i])
        step = expected[i][valid[i]].max() / 65535
        error = np.abs(sample.disparity - expected[i])[valid[i]].max()
        assert error <= 0.51 * step


def test_infinite_depth_is_sky(tmp_path: Path, rng: np.random.Generator) -> None:
    picture(tmp_path / "a.jpg", rng)
    depth = rng.uniform(1, 9, (40, 60))
    depth[:10], depth[10:12] = np.inf, -1.0
    np.save(tmp_path / "a.npy", depth)
    (tmp_path / "list.csv").write_text("image,depth\na.jpg,a.npy\n")
    assert pack(tmp_path / "list.csv", tmp_path / "out") == 0
    sample = ShardDataset(tmp_path / "out", labels="physical")[0]
    assert sample.mask[:10].all()
    assert (sample.disparity[:10] == 0).all()
    assert not sample.mask[10:12].any()
    assert sample.mask[12:].all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,depth\na.jpg,\n", "row 1: image and either"),
        ("image,depth,disparity\na.jpg,b.npy,c.npy\n", "row 1: image and either"),
        ("image,depth,unit\na.jpg,b.npy,feet\n", "row 1: unit is one of m, cm, mm"),
        ("image;depth\na.jpg;b.npy\n", "unknown: image;depth; columns are separated by commas"),
        ("image,depth,scale\na.jpg,b.npy,0\n", "row 1: scale is 0; a positive number"),
        ("image,depth,scale\na.jpg,b.npy,mm\n", "row 1: scale"),
        ("image,depth\n", "the list has no rows"),
        ("image,depth\na.jpg,b.npy\nmy,pic.jpg,b.npy\n", "row 2 has more fields than the header"),
        ("image,depth,min_depth\na.jpg,b.npy,near\n", "row 1: min_depth is not a number"),
        ("image,depth,min_depth\na.jpg,b.npy,-1\n", "row 1: min_depth is -1; a positive"),
        ("image,disparity,min_depth\na.jpg,b.npy,1\n", "row 1: min_depth is for depth"),
        ('[{"image": "a.jpg", "depth": 3}]', "row 1: depth is 3; the name of a file"),
        ('[{"image": ["a.jpg"], "depth": "b.npy"}]', "row 1: image is .'a.jpg'.; the name"),
        ('[{"image": "a.jpg", "depth": "b.npy", "mask": true}]', "row 1: mask is True; the name"),
    ],
)
def test_mistakes_in_a_list(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / ("list.json" if text.startswith("[") else "list.csv")
    path.write_text(text)
    with pytest.raises(SourceError, match=message):
        list_source(path)


def test_mistakes_are_named(tmp_path: Path, rng: np.random.Generator, capsys) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        folder_source(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="no pictures"):
        folder_source(tmp_path)
    with pytest.raises(SourceError, match="a list is a"):
        list_source(_touch(tmp_path / "list.xlsx"))
    picture(tmp_path / "a.jpg", rng)
    np.save(tmp_path / "a.npy", np.ones((41, 60)))
    (tmp_path / "list.csv").write_text("image,depth\na.jpg,a.npy\n")
    assert pack(tmp_path / "list.csv", tmp_path / "out") == 1
    assert "the picture is 40 x 60, its label 41 x 60" in capsys.readouterr().out
    assert pack(tmp_path / "list.csv", tmp_path / "out", "--size", "9") == 1
    assert "--size is for a folder" in capsys.readouterr().err
    assert pack(tmp_path / "gone", tmp_path / "other", "--size", "9") == 1
    assert f"{tmp_path / 'gone'}: no such file or folder" in capsys.readouterr().err


def _touch(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize("kind", ["depth", "mask"])
@pytest.mark.parametrize("suffix", [".png", ".npy", ".tif"])
def test_a_damaged_map_of_a_list_is_named(
    kind: str, suffix: str, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    """The file that is damaged, not only the picture of its row."""
    picture(tmp_path / "a.png", rng)
    whole, half = tmp_path / "whole.npy", tmp_path / f"half{suffix}"
    values = rng.integers(1, 60000, (40, 60)).astype(np.uint16)
    np.save(whole, values)
    if suffix == ".npy":
        np.save(half, values)
    else:
        Image.fromarray(values).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    files = {"depth": whole.name, "mask": whole.name, kind: half.name}
    table = tmp_path / "list.csv"
    table.write_text(f"image,depth,mask\na.png,{files['depth']},{files['mask']}\n")
    assert pack(table, tmp_path / "out") == 1
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "FAILED a.png" in x]
    assert str(half) in line


def test_units_of_a_list(tmp_path: Path, rng: np.random.Generator) -> None:
    """Depth is in metres by the list's own words; disparity may have any unit."""
    picture(tmp_path / "a.jpg", rng)
    np.save(tmp_path / "a.npy", rng.random((40, 60)) + 1)
    (tmp_path / "list.csv").write_text("image,depth,disparity\na.jpg,a.npy,\na.jpg,,a.npy\n")
    assert pack(tmp_path / "list.csv", tmp_path / "out") == 0
    data = ShardDataset(tmp_path / "out")
    assert [data.unit(i) for i in range(2)] == ["1/metre", ""]


def test_a_list_of_classes_is_told(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,label\na.jpg,a.png\n")
    with pytest.raises(SourceError, match=r"unknown: label.*segmentation\.data"):
        list_source(tmp_path / "list.csv")


def test_a_list_that_changed_is_another_set(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    """Its pictures' names are the same; what their labels mean is not."""
    picture(tmp_path / "a.png", rng)
    np.save(tmp_path / "a.npy", rng.random((40, 60), np.float32) + 1)
    table = tmp_path / "list.csv"
    table.write_text("image,depth,scale\na.png,a.npy,0.001\n")
    assert pack(table, tmp_path / "out") == 0
    table.write_text("image,depth,scale\na.png,a.npy,0.01\n")
    assert pack(table, tmp_path / "out") != 0
    assert "the shards there differ in names" in capsys.readouterr().err


def test_a_turned_picture_has_no_label(tmp_path: Path, rng: np.random.Generator) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(tmp_path / "a.jpg", rng, exif=exif)
    np.save(tmp_path / "a.npy", np.ones((40, 60), np.float32))
    (tmp_path / "list.csv").write_text("image,depth\na.jpg,a.npy\n")
    with pytest.raises(SourceError, match="EXIF orientation"):
        list_source(tmp_path / "list.csv")[0].load()


@pytest.mark.parametrize("how", ["column", "option"])
def test_one_pixel_too_near_costs_precision(
    how: str, tmp_path: Path, rng: np.random.Generator, capsys, caplog, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    depths = []
    for i in range(3):
        picture(tmp_path / f"{i}.png", rng)
        depth = rng.uniform(10, 80, (40, 60))
        if i == 1:
            depth[rng.integers(40), rng.integers(60)] = 0.005
        np.save(f"{i}.npy", depth)
        depths.append(depth)
    rows = [f"{i}.png,{i}.npy" for i in range(3)]
    Path("plain.csv").write_text("\n".join(["image,depth", *rows]) + "\n")

    def errors(out: str) -> list[float]:
        data = ShardDataset(out, labels="physical")
        return [
            float(np.abs(sample.disparity * depth - 1)[sample.mask & (depth > 1)].max())
            for sample, depth in zip(data, depths, strict=True)
        ]

    assert main(["data", "check", "plain.csv"]) == 0
    assert "warning: 1 with a coarse label" in capsys.readouterr().out
    assert pack(Path("plain.csv"), Path("coarse")) == 0
    assert "coarse: 1 with a coarse label" in caplog.text and "(1.png: " in caplog.text
    assert main(["data", "check", "shards", "coarse"]) == 0
    assert "warning: 1 with a coarse label" in capsys.readouterr().out
    found = errors("coarse")
    assert found[1] > 0.05 > 0.001 > max(found[0], found[2])

    options: tuple[str, ...] = ("--min-depth", "1")
    if how == "column":
        text = ["image,depth,min_depth", *(f"{row},0.5" for row in rows)]
        Path("near.csv").write_text("\n".join(text) + "\n")
        options = ()
    table = Path("near.csv" if how == "column" else "plain.csv")
    caplog.clear()
    assert main(["data", "check", str(table), *options]) == 0
    assert "coarse" not in capsys.readouterr().out
    assert pack(table, Path("fine"), *options) == 0
    assert not caplog.records
    assert max(errors("fine")) < 0.001
    masks = [sample.mask for sample in ShardDataset("fine")]
    assert [int((~mask).sum()) for mask in masks] == [0, 1, 0]
    if how == "option":
        assert pack(table, Path("fine")) == 1
        assert "differ in min_depth" in capsys.readouterr().err


def test_the_least_depth_of_data_sets(tmp_path: Path, rng: np.random.Generator, capsys) -> None:
    made = MAKE["nyuv2"](tmp_path / "nyu", rng)
    median = float(np.median(np.concatenate([1 / m.disparity[m.valid] for m in made])))
    nearest = round(median, 3) + 0.0005  # between two values in millimetres
    out = tmp_path / "out"
    command = ["data", "pack", "nyuv2", str(tmp_path / "nyu"), "--out", str(out)]
    assert main([*command, "--min-depth", str(nearest)]) == 0
    by_name = {m.image.relative_to(tmp_path / "nyu").as_posix(): m for m in made}
    data = ShardDataset(out, labels="physical")
    for index, sample in enumerate(data):
        m = by_name[data.meta(index)["source"]]
        assert np.array_equal(sample.mask, m.valid & (m.disparity <= 1 / nearest))
    MAKE["irs"](tmp_path / "irs", rng)
    for name, source, message in (
        ("irs", tmp_path / "irs", "irs has disparity in pixels"),
        ("sa1b", tmp_path / "nyu", "--min-depth is for pictures with depth"),
        ("shards", out, "--min-depth is for pictures with depth"),
    ):
        assert main(["data", "check", name, str(source), "--min-depth", "1"]) == 1
        assert message in capsys.readouterr().err
    for depth in ("0", "-1", "inf", "nan", "x"):
        with pytest.raises(SystemExit):
            main([*command, "--min-depth", depth])


@pytest.mark.parametrize(("labeled", "bare"), [(3, 2), (3, 0), (0, 2)])
def test_shards_of_both_kinds_are_checked(
    labeled: int, bare: int, tmp_path: Path, seed: int, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, count in (("labeled", labeled), ("bare", bare)):
        if count:
            tiny.write_shards(tmp_path / kind, 1, count, seed, labeled=kind == "labeled")
            Path("set").mkdir(exist_ok=True)
            (tmp_path / kind / "00000.tar").rename(f"set/{kind}.tar")
    assert main(["data", "check", "synthetic", "set"]) == 0
    text = capsys.readouterr().out
    total = labeled + bare
    if labeled and bare:
        assert "shards: 3 labeled, 2 not labeled" in text
        assert "5 read: 5 good, 0 damaged, 2 not labeled, 0 without a label; 100.0%" in text
    else:
        assert f"shards: {'labeled' if labeled else 'not labeled'}\n" in text
        end = ", 0 without a label; 100.0% of the pixels valid" if labeled else ""
        assert f"{total} read: {total} good, 0 damaged{end}\n" in text
    assert Image.open("synthetic-check.png").size[0] > 3 * 192
