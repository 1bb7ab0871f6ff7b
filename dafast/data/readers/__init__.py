"""Data sets in their published form, one file each.

A reader is imported when it is used; importing this package gives only the names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dafast.data.readers._pictures import PictureReader
    from dafast.data.readers._reader import Reader

NAMES = ("tartanair", "blendedmvs", "hrwsi", "megadepth", "irs", "diml", "nyuv2", "kitti")
"""The labeled data sets."""

PICTURE_NAMES = (
    *("sa1b", "imagenet21k", "lsun", "bdd100k", "openimages", "places365", "landmarks"),
    "objects365",
)
"""The unlabeled ones."""


def get_reader(name: str) -> Reader:
    """The reader of a labeled data set.

    Raises:
        ValueError: If `name` is not in `NAMES`.
    """
    return _get(name, NAMES)


def get_picture_reader(name: str) -> PictureReader:
    """The reader of an unlabeled data set.

    Raises:
        ValueError: If `name` is not in `PICTURE_NAMES`.
    """
    return _get(name, PICTURE_NAMES)


def _get(name: str, names: tuple[str, ...]) -> Any:
    if name not in names:
        raise ValueError(f"no reader for {name!r}; there are: {', '.join(names)}")
    return importlib.import_module(f"dafast.data.readers.{name}").READER
