"""Cityscapes: street scenes with fine annotations, the 19 classes of its benchmark.

The reader takes `leftImg8bit` and from `gtFine` the pictures of label ids, which come with the
data, or those of train ids where the data set's own `createTrainIdLabelImgs` has written them.

Source: README.md (folders, names, counts) and cityscapesscripts/helpers/labels.py (ids, train ids)
of https://github.com/mcordts/cityscapesScripts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dafast.data.segmentation._dataset import (
    IGNORE,
    PathPairs,
    SegmentationDataset,
    read_indices,
    warn_if_incomplete,
    wrong_folder,
)

LABEL_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
"""The classes in order of train id, with the label id that each has in the files."""

PUBLISHED = {"train": 2975, "val": 500}

LAYOUT = """
  PATH/leftImg8bit/train/CITY/CITY_000000_000019_leftImg8bit.png   leftImg8bit_trainvaltest.zip
  PATH/gtFine/train/CITY/CITY_000000_000019_gtFine_labelIds.png    gtFine_trainvaltest.zip
  and the same under val; or _gtFine_labelTrainIds.png instead of _labelIds.png
"""

_TRAIN_ID = np.full(256, IGNORE, np.uint8)
_TRAIN_ID[list(LABEL_IDS.values())] = np.arange(len(LABEL_IDS))


def from_label_ids(ids: np.ndarray) -> np.ndarray:
    """Converts label ids (H, W) to train ids; ids that the benchmark leaves out become `IGNORE`."""
    return _TRAIN_ID[ids]


def from_train_ids(ids: np.ndarray) -> np.ndarray:
    """Train ids as they are; numbers beyond the 19 classes (255, and lane lines) are `IGNORE`."""
    return np.where(ids < len(LABEL_IDS), ids, np.uint8(IGNORE))


def read_classes(path: Path) -> np.ndarray:
    """The class map (H, W) of a label picture; its name says which ids it has."""
    ids = read_indices(path)
    return from_train_ids(ids) if path.name.endswith("TrainIds.png") else from_label_ids(ids)


def cityscapes(root: Path, training: bool) -> SegmentationDataset:
    """The photos of `train`, or of `val`.

    Args:
        root: Folder as in `LAYOUT`.
        training: Which split.

    Raises:
        SourceError: If the folder has another layout.
    """
    split = "train" if training else "val"
    base = root / "leftImg8bit" / split
    photos = sorted(base.glob("*/*_leftImg8bit.png"))
    if not photos:
        raise wrong_folder(root, f"no leftImg8bit/{split}/*/*_leftImg8bit.png", LAYOUT)
    pairs = []
    for photo in photos:
        stem = photo.name.removesuffix("_leftImg8bit.png")
        folder = root / "gtFine" / split / photo.parent.name
        names = [f"{stem}_gtFine_{kind}.png" for kind in ("labelTrainIds", "labelIds")]
        label = next((folder / name for name in names if (folder / name).is_file()), None)
        if label is None:
            raise wrong_folder(root, f"no gtFine/{split}/{folder.name}/{names[1]}", LAYOUT)
        pairs.append((photo, label))
    warn_if_incomplete("cityscapes", base, len(pairs), PUBLISHED[split])
    keys = [photo.relative_to(base).as_posix() for photo in photos]
    return SegmentationDataset(tuple(LABEL_IDS), keys, PathPairs(pairs, read_classes))
