"""One reader of lists for training, packing and evaluation; values compared as files hold them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafast.cli import main
from dafast.data.lists import list_source, read_list
from dafast.data.maps import own_number, read_stored
from dafast.data.readers import get_reader
from dafast.data.shards import ShardDataset, ShardError
from dafast.data.sources import SourceError
from dafast.evaluation.readers import READERS
from tests.notices import Notices

SHAPE = (12, 16)


def picture(path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(rng.integers(0, 256, (*SHAPE, 3), np.uint8)).save(path)


def write_list(path: Path, rows: list[dict[str, object]]) -> Path:
    suffix = path.suffix.lower()
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)))
            writer.writeheader()
            writer.writerows(rows)
    return path


def save_map(path: Path, values: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


def masks(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where the only picture of a list is known, in training and in evaluation."""
    (item,), (sample,) = list_source(path), READERS["list"](path)
    assert item.read is not None
    return item.read().mask, np.isfinite(sample.depth)


FLOAT_MAX = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("kind", ["float16.npy", "float32.npy", "float64.npy", ">f4.npy", "tif"])
@pytest.mark.parametrize("invalid", ["65.535", "99.9", "1e20", "3.4028235e+38", str(FLOAT_MAX)])
def test_invalid_is_compared_in_the_type_of_the_file(
    kind: str, invalid: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    dtype = np.dtype("float32" if kind == "tif" else kind.removesuffix(".npy"))
    known = rng.random(SHAPE) < 0.5
    with np.errstate(over="ignore"):
        values = np.where(known, rng.uniform(1, 9, SHAPE), float(invalid)).astype(dtype)
    picture(tmp_path / "a.png", rng)
    save_map(tmp_path / ("d.tif" if kind == "tif" else "d.npy"), values)
    name = "d.tif" if kind == "tif" else "d.npy"
    row = {"image": "a.png", "depth": name, "invalid": invalid}
    training, evaluation = masks(write_list(tmp_path / "l.csv", [row]))
    np.testing.assert_array_equal(training, known)
    np.testing.assert_array_equal(evaluation, known)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_invalid_of_integers(dtype: type, tmp_path: Path, rng: np.random.Generator) -> None:
    known = rng.random(SHAPE) < 0.5
    values = np.where(known, rng.integers(1, 99, SHAPE), 127).astype(dtype)
    picture(tmp_path / "a.png", rng)
    save_map(tmp_path / "d.npy", values)
    row = {"image": "a.png", "depth": "d.npy", "invalid": 127.0, "scale": 0.1}
    for mask in masks(write_list(tmp_path / "l.json", [row])):
        np.testing.assert_array_equal(mask, known)
    for harmless in (-1, 70_000, "nan", "inf"):  # no value of these files
        list_source(write_list(tmp_path / "l.csv", [{**row, "invalid": harmless}]))[0].load()
    (item,) = list_source(write_list(tmp_path / "l.csv", [{**row, "invalid": 12.7}]))
    with pytest.raises(SourceError, match=r"d\.npy: invalid = 12\.7, .* integers; .*before scale"):
        item.load()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint16"])
@pytest.mark.parametrize("limit", ["0.7", "0.9", "1.1", "2.3", "8.7"])
def test_limits_keep_the_values_that_equal_them(
    dtype: str, limit: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """In float64 the file's 0.7 is below 0.7, and 1000 * 0.0007 above it."""
    scale = 0.001 if dtype == "uint16" else 1.0
    stored = float(limit) * 1000 if dtype == "uint16" else float(limit)
    own = np.dtype(dtype).type(round(stored) if dtype == "uint16" else stored)
    values = rng.permutation(np.repeat([own / 2, own, own * 2], 64)).reshape(SHAPE).astype(dtype)
    picture(tmp_path / "a.png", rng)
    save_map(tmp_path / "d.npy", values)
    row = {"image": "a.png", "depth": "d.npy", "scale": scale}
    near, far = values >= own, values <= own
    training, evaluation = masks(write_list(tmp_path / "l.csv", [{**row, "min_depth": limit}]))
    np.testing.assert_array_equal(training, near)
    np.testing.assert_array_equal(evaluation, near)
    training, evaluation = masks(write_list(tmp_path / "l.csv", [{**row, "max_depth": limit}]))
    np.testing.assert_array_equal(training, far)
    assert evaluation.all()  # there it is the protocol's cap
    (item,) = list_source(write_list(tmp_path / "l.csv", [row]), float(limit))
    assert item.read is not None
    np.testing.assert_array_equal(item.read().mask, near)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_least_depth_of_a_reader_is_compared_likewise(
    dtype: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = tmp_path / "abandonedfactory" / "Easy" / "P000"
    for name in ("image_left", "depth_left"):
        (folder / name).mkdir(parents=True)
    picture(folder / "image_left" / "000000_left.png", rng)
    values = rng.choice(np.array([0.5, 0.7, 0.9, 5.0], dtype), SHAPE)
    np.save(folder / "depth_left" / "000000_left_depth.npy", values)
    for limit in (0.7, 0.9):
        (item,) = get_reader("tartanair").items(tmp_path, limit)
        assert item.read is not None
        np.testing.assert_array_equal(item.read().mask, values >= values.dtype.type(limit))


def test_infinite_depth_stays_sky_beyond_the_largest_depth(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    values = rng.choice(np.array([1.0, 5.0, np.inf], np.float32), SHAPE)
    picture(tmp_path / "a.png", rng)
    save_map(tmp_path / "d.npy", values)
    row = {"image": "a.png", "depth": "d.npy", "max_depth": 3}
    training, _ = masks(write_list(tmp_path / "l.csv", [row]))
    np.testing.assert_array_equal(training, values != 5.0)


@pytest.mark.parametrize(
    "name", ["l.csv", "l.CSV", "l.txt", "l.json", "L.JSON", "l.jsonl", "l.JsonL"]
)
def test_one_list_means_the_same_everywhere(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Every column, for training and for evaluation, in every kind of list."""
    picture(tmp_path / "a.png", rng)
    stored = rng.choice(np.array([0, 150, 300, 4000, 9000, 65535], np.uint16), SHAPE)
    save_map(tmp_path / "d.png", stored)
    mask = rng.random(SHAPE) < 0.8
    save_map(tmp_path / "m.png", mask.astype(np.uint8) * 255)
    disparity = rng.uniform(1, 90, SHAPE).astype(np.float32)
    save_map(tmp_path / "s.NPY".lower(), disparity)
    depth: dict[str, object] = {
        "image": "a.png", "depth": "d.png", "mask": "m.png", "scale": "0.1", "unit": "cm",
        "invalid": "65535", "min_depth": "0.3", "max_depth": "4", "sharp": "1",
    }  # fmt: skip
    stereo = {"image": "a.png", "disparity": "s.npy", "focal": 700, "baseline": 0.2, "offset": 3}
    path = write_list(tmp_path / name, [depth, stereo])
    items, samples = list_source(path), READERS["list"](path)
    assert len(items) == len(samples) == 2
    known = mask & (stored >= 300) & (stored != 65535)
    metres = stored * 0.001
    label = items[0].read
    assert label is not None
    np.testing.assert_array_equal(label().mask, known & (stored <= 4000))
    assert samples[0].max_depth == 4 and samples[0].sharp
    np.testing.assert_array_equal(np.isfinite(samples[0].depth), known)
    np.testing.assert_allclose(samples[0].depth[known], metres[known], rtol=1e-6)
    np.testing.assert_allclose(samples[1].depth, 140 / (disparity.astype(float) + 3), rtol=1e-6)
    if name == "l.csv":
        assert main(["data", "pack", str(path), "--out", str(tmp_path / "out")]) == 0
        data = ShardDataset(tmp_path / "out", labels="physical")
        assert [data.unit(i) for i in range(2)] == ["1/metre", "1/metre"]
        np.testing.assert_allclose(data[1].disparity, 1 / samples[1].depth, rtol=1e-3)


@pytest.mark.parametrize(
    ("factor", "row", "warned"),
    [
        (1000, {}, True),  # millimetres without a unit
        (1000, {"unit": "mm"}, False),
        (1000, {"scale": 0.001}, False),
        (1, {"unit": "mm"}, True),
        (1, {}, False),
    ],
)
def test_units_that_cannot_be_are_warned_of(
    factor: float,
    row: dict[str, object],
    warned: bool,
    tmp_path: Path,
    rng: np.random.Generator,
    notices: Notices,
) -> None:
    rows = []
    for i in range(3):
        picture(tmp_path / f"{i}.png", rng)
        save_map(tmp_path / f"{i}.npy", rng.uniform(1, 9, SHAPE) * factor)
        rows.append({"image": f"{i}.png", "depth": f"{i}.npy", **row})
    path = write_list(tmp_path / "l.csv", rows)
    for read in (
        lambda: [item.load() for item in list_source(path)],
        lambda: list(READERS["list"](path)),
    ):
        notices.clear()
        read()
        found = [text for text in notices.messages if "median depth" in text]
        assert len(found) == warned  # once a list
        if warned:
            assert str(path) in found[0] and "`unit`" in found[0] and "metres" in found[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.dat", b"image,depth\na.jpg,b.npy\n", r"it is a text file.*list.*\.csv"),
        ("l.tar", b"image,depth\na.jpg,b.npy\n" * 100, r"it is a text file.*list.*\.csv"),
        ("l.tar", b'{"a": 1}', "it is a JSON file"),
        ("l.tar", b"PK\x03\x04" + b"x" * 600, "it is a zip archive"),
        ("l.tar", b"\x1f\x8b" + b"x" * 600, "it is a gzip archive.*gunzip"),
        ("l.tar", b"\x89PNG" + b"x" * 600, "it is a PNG image"),
        ("l.tar", b"\xff\xd8\xff" + b"x" * 600, "it is a JPEG image"),
        ("l.tar", b"\x89HDF" + b"x" * 600, "it is an HDF5 file"),
        ("l.tar", b"<html>" + b"x" * 600, "it is an HTML page"),
        ("l.tar", bytes(range(1, 256)) * 4, "it is no tar file"),
    ],
)
def test_what_is_no_tar_is_no_shard(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ShardError, match=f"is not a shard: {message}") as caught:
        ShardDataset(path)
    assert "Delete" not in str(caught.value)


def test_a_list_as_shards_names_the_command(tmp_path: Path) -> None:
    for name in ("l.CSV", "l.txt", "l.Json"):
        (tmp_path / name).write_text("image,depth\n")
        with pytest.raises(ShardError, match=r"is a list of pictures; .*`dafast data pack"):
            ShardDataset(tmp_path / name)


def test_numbers_as_files_hold_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in rng.uniform(0, 100, 50):
        for dtype in (np.float16, np.float32, np.float64):
            assert own_number(float(number), np.dtype(dtype)) == float(dtype(number))
    assert own_number(9.0 * 0.001 / 0.001, np.dtype(np.uint16)) == 9.0
    assert own_number(0.57 * 100, np.dtype(np.uint16)) == 57.0
    assert own_number(math.inf, np.dtype(np.uint16)) == math.inf
    assert own_number(5.5, np.dtype(np.uint8)) == 5.5


@pytest.mark.parametrize("values", [np.ones((3, 4), complex), np.ones((3, 4, 2)), np.array(["a"])])
def test_what_is_no_map_is_refused(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="one number a pixel is needed"):
        read_stored(save_map(tmp_path / "d.npy", values))


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage, depth , scale\na.png, d.npy, 0.001\n",
        "image,depth,scale \r\n a.png , d.npy , 0.001 \r\n",  # no name of a file ends in a space
        "\n\nimage,depth,scale\n\na.png,d.npy,0.001\n\n",
    ],
)
def test_spaces_and_empty_lines_do_not_count(text: str, tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_bytes(text.encode())
    (found,) = read_list(path)
    assert (found.name, found.map.name, found.scale) == ("a.png", "d.npy", 0.001)


@pytest.mark.parametrize("separator", "\u2028\x85\x0c")
def test_a_name_may_have_any_character(separator: str, tmp_path: Path) -> None:
    row = {"image": f"a{separator}.png", "depth": "d.npy"}
    path = tmp_path / "l.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [found.name for found in read_list(path)] == [row["image"]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "image,depth,depth\na,b,c\n", "several columns are called 'depth'"),
        ("l.csv", "a.png,d.npy\n", "the list has no rows"),
        ("l.csv", "image,depth\na,b,c\n", "row 1 has more fields than the header"),
        ("l.csv", "image,depth\na\n", "row 1: image and either depth or disparity are needed"),
        ("l.csv", "image;depth\na;b\n", "columns are separated by commas"),
        ("l.csv", "image,depth,min_depth,max_depth\na,b,8,5\n", "min_depth 8 is above max_depth 5"),
        ("l.json", '["a.png"]', 'an object is needed; got "a.png"'),
        ("l.json", '{"image": "a.png"}', "a list of objects is needed; got {"),
        ("l.jsonl", "[1, 2]\n", r"an object is needed; got \[1, 2\]"),
    ],
)
def test_a_wrong_list_is_explained(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        read_list(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_list_in_another_encoding_is_named(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("image,depth\né.png,d.npy\n", encoding=encoding)
    with pytest.raises(SourceError, match=r"l\.csv: not a text in UTF-8; save the list in this"):
        read_list(path)
