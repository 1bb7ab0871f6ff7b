"""Readers of class maps: small files in each published format, whole, damaged and missing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafast.data.segmentation import IGNORE, READERS, SegmentationDataset
from dafast.data.segmentation.cityscapes import LABEL_IDS
from dafast.data.shards import SampleError, ShardError
from dafast.data.sources import SourceError

# cityscapesscripts/helpers/labels.py: (id, trainId) of every label that has an id.
CITYSCAPES_IDS = [
    (0, 255), (1, 255), (2, 255), (3, 255), (4, 255), (5, 255), (6, 255), (7, 0), (8, 1), (9, 255),
    (10, 255), (11, 2), (12, 3), (13, 4), (14, 255), (15, 255), (16, 255), (17, 5), (18, 255),
    (19, 6), (20, 7), (21, 8), (22, 9), (23, 10), (24, 11), (25, 12), (26, 13), (27, 14), (28, 15),
    (29, 255), (30, 255), (31, 16), (32, 17), (33, 18),
]  # fmt: skip
SIZE = (12, 20)


def save(array: np.ndarray, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def cityscapes_frame(
    root: Path, split: str, city: str, frame: int, rng: np.random.Generator, *, trained: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One photo with its labels, of ids that have a train id and of some that have none."""
    stem = f"{city}_000000_{frame:06d}"
    image = picture(rng)
    save(image, root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
    which = rng.integers(0, len(CITYSCAPES_IDS), SIZE)
    ids, train_ids = np.array(CITYSCAPES_IDS, np.uint8).T[:, which]
    base = root / "gtFine" / split / city
    save(ids, base / f"{stem}_gtFine_labelIds.png")
    save(rng.integers(0, 256, SIZE, np.uint8), base / f"{stem}_gtFine_instanceIds.png")
    if trained:  # createTrainIdLabelImgs of later versions writes 19 for lane lines
        lanes = np.where(rng.random(SIZE) < 0.1, np.uint8(19), train_ids)
        save(lanes, base / f"{stem}_gtFine_labelTrainIds.png")
        return image, np.where(lanes == 19, np.uint8(IGNORE), lanes)
    return image, train_ids


def test_cityscapes(tmp_path: Path, rng: np.random.Generator, notices) -> None:
    expected = {
        f"{city}/{city}_000000_{frame:06d}_leftImg8bit.png": cityscapes_frame(
            tmp_path, "val", city, frame, rng, trained=frame == 19
        )
        for city, frame in (("lindau", 0), ("lindau", 19), ("bonn", 19))
    }
    cityscapes_frame(tmp_path, "train", "aachen", 0, rng, trained=False)
    data = READERS["cityscapes"](tmp_path, False)
    assert "3 photos" in notices.text and "500" in notices.text
    assert list(data.keys) == sorted(expected)
    assert data.classes == tuple(LABEL_IDS) and len(data.classes) == 19
    assert data.classes[:2] == ("road", "sidewalk") and data.classes[-1] == "bicycle"
    for i, key in enumerate(data.keys):
        sample = data.read(i)
        assert np.array_equal(sample.image, expected[key][0])
        assert np.array_equal(sample.classes, expected[key][1])
        assert sample.classes.dtype == np.uint8
    assert len(READERS["cityscapes"](tmp_path, True)) == 1


def test_cityscapes_maps_every_label_as_its_own_tools(tmp_path: Path) -> None:
    ids, train_ids = np.array(CITYSCAPES_IDS, np.uint8).T
    save(np.zeros((1, len(ids), 3), np.uint8), tmp_path / "leftImg8bit/val/x/x_1_1_leftImg8bit.png")
    save(ids[None], tmp_path / "gtFine/val/x/x_1_1_gtFine_labelIds.png")
    assert READERS["cityscapes"](tmp_path, False)[0].classes[0].tolist() == train_ids.tolist()


def ade20k_photo(root: Path, split: str, number: int, rng: np.random.Generator) -> np.ndarray:
    stem = f"ADE_{'val' if split == 'validation' else 'train'}_{number:08d}"
    save(picture(rng), root / "images" / split / f"{stem}.jpg", quality=90)
    values = rng.integers(0, 151, SIZE, dtype=np.uint8)
    values[0, :3] = 0, 1, 150
    save(values, root / "annotations" / split / f"{stem}.png")
    return values


@pytest.mark.parametrize("parent", [False, True])
def test_ade20k(parent: bool, tmp_path: Path, rng: np.random.Generator, notices) -> None:
    root = tmp_path / "ADEChallengeData2016"
    values = [ade20k_photo(root, "validation", i, rng) for i in (1, 2)]
    ade20k_photo(root, "training", 1, rng)
    data = READERS["ade20k"](tmp_path if parent else root, False)
    assert "2 photos" in notices.text and "2000" in notices.text
    assert data.classes == tuple(str(i) for i in range(1, 151))
    for i, stored in enumerate(values):
        classes = data.read(i).classes
        assert (classes[stored == 0] == IGNORE).all()
        assert (classes[stored > 0] == stored[stored > 0] - 1).all()
    assert len(READERS["ade20k"](root, True)) == 1


def test_ade20k_names(tmp_path: Path, rng: np.random.Generator) -> None:
    """As in the file: tabs, blanks behind numbers and names, several names for one class."""
    ade20k_photo(tmp_path, "validation", 1, rng)
    rows = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.1576\t11664\t1172\twall",
            "2\t0.1072\t6046\t612\tbuilding, edifice", "3 \t0.0074\t709\t75\twater "]  # fmt: skip
    rows += [f"{i}\t0.0\t1\t1\tname {i}, other" for i in range(4, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows) + "\n")
    names = READERS["ade20k"](tmp_path, False).classes
    assert names[:4] == ("wall", "building", "water", "name 4") and len(names) == 150
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows[:20]))
    with pytest.raises(SourceError, match="19 classes"):
        READERS["ade20k"](tmp_path, False)


def write_list(root: Path, rng: np.random.Generator, kind: str = "csv", count: int = 3) -> Path:
    """A list of random photos with the classes a, b and c, each map another kind of picture."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        save(picture(rng), root / f"photos/{i}.png")
        classes = rng.integers(0, 3, SIZE, dtype=np.uint8)
        classes[rng.random(SIZE) < 0.2] = IGNORE
        label = Image.fromarray(classes)
        if i % 2:
            label.putpalette(rng.integers(0, 256, 768).tolist())
        label.save(root / f"{i}.png")
        rows.append({"image": f"photos/{i}.png", "label": f"{i}.png"})
    (root / "classes.txt").write_text("a\nb\nc\n\n")
    path = root / f"list.{kind}"
    if kind == "csv":
        lines = ["image,label", *(f"{r['image']},{r['label']}" for r in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_lists(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    data = READERS["list"](write_list(tmp_path, rng, kind), True)
    assert data.classes == ("a", "b", "c")
    assert list(data.keys) == ["photos/0.png", "photos/1.png", "photos/2.png"]
    for i in range(3):
        sample = data.read(i)
        with Image.open(tmp_path / f"photos/{i}.png") as image:
            assert np.array_equal(sample.image, np.asarray(image))
        with Image.open(tmp_path / f"{i}.png") as label:
            assert label.mode == ("P" if i % 2 else "L")
            assert np.array_equal(sample.classes, np.asarray(label))
    copy = pickle.loads(pickle.dumps(data))  # as a spawned worker gets it
    assert np.array_equal(copy[1].classes, data[1].classes)


@pytest.mark.slow
def test_synthetic_shards(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")
    from dafast.synthetic import CLASSES, render_scene, write_shards

    write_shards(tmp_path, 3, seed=seed, workers=1, shard_size=2, size=(48, 32), progress=False)
    data = READERS["synthetic"](tmp_path, True)
    assert data.classes == CLASSES
    assert len(data) == 3
    for i in range(3):
        sample, scene = data[i], render_scene(seed + i, size=(48, 32))
        assert np.array_equal(sample.classes, scene.classes)
        assert np.abs(sample.image.astype(int) - scene.image).mean() < 25


def test_shards_without_class_maps_are_named(tmp_path: Path, seed: int) -> None:
    from tests.training import tiny

    with pytest.raises(SourceError, match=r"has no classes\.png.*dafast synth"):
        READERS["synthetic"](tiny.write_shards(tmp_path / "depth", 1, 2, seed), True)
    with pytest.raises(SourceError, match="no such folder"):
        READERS["synthetic"](tmp_path / "nothing", True)


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "list"])
@pytest.mark.parametrize("there", [False, True])
def test_a_wrong_folder_is_refused_with_the_layout(name: str, there: bool, tmp_path: Path) -> None:
    path = tmp_path / "data"
    if there:
        path.mkdir()
    with pytest.raises(SourceError) as error:
        READERS[name](path, True)
    message = str(error.value)
    assert str(path) in message and "expected" in message and "PATH" in message
    if not there:
        assert "does not exist" in message


def test_photos_without_labels_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    cityscapes_frame(tmp_path / "c", "val", "bonn", 0, rng, trained=False)
    next((tmp_path / "c").rglob("*labelIds.png")).unlink()
    with pytest.raises(SourceError, match=r"no gtFine/val/bonn/.*labelIds\.png"):
        READERS["cityscapes"](tmp_path / "c", False)
    ade20k_photo(tmp_path / "a", "validation", 1, rng)
    next((tmp_path / "a").rglob("ADE*.png")).unlink()
    with pytest.raises(SourceError, match=r"no annotations/validation/ADE_val_00000001\.png"):
        READERS["ade20k"](tmp_path / "a", False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\n", "is empty"),
        ("image\nx.png\n", "row 1.*image and label are needed"),
        ("image,label,mask\nx.png,y.png,z.png\n", "no others"),
        ("image,label\n,y.png\n", "row 1"),
        ("image,label\nmy,x.png,y.png\n", "row 1 has more fields than the header; quote names"),
    ],
)
def test_wrong_lists_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        READERS["list"](tmp_path / "list.csv", True)


def test_a_list_needs_its_classes(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_list(tmp_path, rng)
    (tmp_path / "classes.txt").write_text("\n")
    with pytest.raises(SourceError, match=r"classes\.txt: is empty"):
        READERS["list"](path, True)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(SourceError, match=r"no classes\.txt"):
        READERS["list"](path, True)


def damage(root: Path, how: str, rng: np.random.Generator) -> str:
    """Spoils sample 1 of a list; returns what the message says."""
    if how == "photo":
        path = root / "photos/1.png"
        path.write_bytes(path.read_bytes()[:60])
        return "photos/1.png"
    if how == "colours":
        save(picture(rng), root / "1.png")
        return "mode RGB"
    if how == "size":
        save(np.zeros((5, 7), np.uint8), root / "1.png")
        return r"the photo is \(12, 20\), its class map \(5, 7\)"
    if how == "class":
        save(np.full(SIZE, 3, np.uint8), root / "1.png")
        return "class 3; there are 3"
    (root / "1.png").unlink()
    return "No such file"


@pytest.mark.parametrize("how", ["photo", "colours", "size", "class", "missing"])
def test_damaged_samples(how: str, tmp_path: Path, rng: np.random.Generator, notices) -> None:
    """Named where exactly this sample is asked for; replaced, counted and bounded in training."""
    data = READERS["list"](write_list(tmp_path, rng), True)
    message = damage(tmp_path, how, rng)
    with pytest.raises(SampleError, match=message):
        data.read(1)
    data.max_bad_fraction = 0.5
    sample = data[1]
    assert sample.key == "photos/2.png"
    assert len(sample.skipped) == 1 and sample.skipped[0].startswith("photos/1.png")
    assert data[0].skipped == ()
    assert data[1].skipped == sample.skipped  # remembered
    assert notices.text.count("skipped:") == 1
    strict = READERS["list"](tmp_path / "list.csv", True)
    with pytest.raises(ShardError, match="1 of 3 samples cannot be read"):
        strict[1]


def test_indices_are_those_of_a_sequence(rng: np.random.Generator) -> None:
    maps = rng.integers(0, 2, (4, 2, 3), dtype=np.uint8)
    data = SegmentationDataset("ab", "wxyz", lambda i: (np.zeros((2, 3, 3), np.uint8), maps[i]))
    assert len(data) == 4 and np.array_equal(data[-1].classes, maps[3])
    assert [sample.key for sample in data] == list("wxyz")
    with pytest.raises(IndexError):
        data[4]
