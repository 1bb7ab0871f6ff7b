"""Any photos with class maps, named file by file in a list."""

from __future__ import annotations

from pathlib import Path

from dafast.data.lists import read_rows
from dafast.data.segmentation._dataset import (
    PathPairs,
    SegmentationDataset,
    read_indices,
    wrong_folder,
)
from dafast.data.sources import SourceError

LAYOUT = """
  PATH          a .csv file with a first line that names its columns, or .json, .jsonl: rows with
                  image    the photo, relative to the list's folder
                  label    its class map: an 8-bit gray or palette picture of class indices; 255
                           does not count
  classes.txt   next to it: the names of the classes, one a line, the first is class 0
"""


def listed(path: Path, training: bool = True) -> SegmentationDataset:
    """The photos of a list; see `LAYOUT`.

    Args:
        path: The list.
        training: Has no effect: a list has no splits.

    Raises:
        SourceError: If the list or `classes.txt` cannot be used; the message names the row.
    """
    names = path.parent / "classes.txt"
    if not path.is_file():
        raise wrong_folder(path, "is not a file", LAYOUT)
    if not names.is_file():
        raise wrong_folder(path.parent, "no classes.txt", LAYOUT)
    classes = [line.strip() for line in names.read_text(encoding="utf-8").splitlines()]
    classes = [name for name in classes if name]
    rows = read_rows(path)
    if not rows or not classes:
        raise SourceError(f"{path if classes else names}: is empty")
    pairs = []
    for number, row in enumerate(rows, 1):
        if set(row) != {"image", "label"} or not row["image"] or not row["label"]:
            raise SourceError(
                f"{path}, row {number}: the columns are {', '.join(map(str, row))}; image and "
                "label are needed, and no others"
            )
        pairs.append((path.parent / row["image"], path.parent / row["label"]))
    return SegmentationDataset(
        classes, [str(row["image"]) for row in rows], PathPairs(pairs, read_indices)
    )
