"""ADE20K in the form of the scene parsing challenge of 2016: 150 classes.

Annotations hold 1 to 150; 0 is "other objects", which the challenge leaves out. Names are read from
`objectInfo150.txt` of the archive; without it the classes are named by their numbers.

Source: README.md (folders, names, counts, the meaning of 0) and objectInfo150.txt of
https://github.com/CSAILVision/sceneparsing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dafast.data.segmentation._dataset import (
    PathPairs,
    SegmentationDataset,
    read_indices,
    warn_if_incomplete,
    wrong_folder,
)
from dafast.data.sources import SourceError

CLASS_COUNT = 150
PUBLISHED = {"training": 20_210, "validation": 2000}

LAYOUT = """
  PATH/images/training/ADE_train_00000001.jpg            of ADEChallengeData2016.zip
  PATH/annotations/training/ADE_train_00000001.png
  and the same under validation, with ADE_val_
  PATH/objectInfo150.txt                                 optional: the names of the classes
"""


def read_classes(path: Path) -> np.ndarray:
    """The class map (H, W) of an annotation: value 1 is class 0, value 0 becomes `IGNORE`."""
    return read_indices(path) - np.uint8(1)  # 0 wraps round to 255


def _names(root: Path) -> list[str]:
    path = root / "objectInfo150.txt"
    if not path.is_file():
        return [str(i + 1) for i in range(CLASS_COUNT)]
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    names = [row[-1].split(",")[0].strip() for row in rows if len(row) > 1]
    if len(names) != CLASS_COUNT:
        raise SourceError(f"{path}: {len(names)} classes; the challenge has {CLASS_COUNT}")
    return names


def ade20k(root: Path, training: bool) -> SegmentationDataset:
    """The photos of `training`, or of `validation`.

    Args:
        root: Folder as in `LAYOUT`, or the one that the archive was unpacked in.
        training: Which split.

    Raises:
        SourceError: If the folder has another layout.
    """
    if (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    split = "training" if training else "validation"
    photos = sorted((root / "images" / split).glob("ADE_*.jpg"))
    if not photos:
        raise wrong_folder(root, f"no images/{split}/ADE_*.jpg", LAYOUT)
    pairs = [(p, root / "annotations" / split / f"{p.stem}.png") for p in photos]
    absent = [label for _, label in pairs if not label.is_file()]
    if absent:
        raise wrong_folder(root, f"no {absent[0].relative_to(root)}", LAYOUT)
    warn_if_incomplete("ade20k", root / "images" / split, len(pairs), PUBLISHED[split])
    return SegmentationDataset(
        _names(root), [p.name for p in photos], PathPairs(pairs, read_classes)
    )
