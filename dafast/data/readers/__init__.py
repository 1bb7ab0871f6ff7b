"""Labeled data sets in the form they are published in, one file each.

Nothing but the names is imported before a reader is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dafast.data.readers._reader import Reader

NAMES = ("tartanair", "blendedmvs", "hrwsi", "megadepth", "irs", "diml", "nyuv2", "kitti")


def get_reader(name: str) -> Reader:
    """The reader of a data set.

    Raises:
        ValueError: If `name` is none of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"no reader for {name!r}; there are: {', '.join(NAMES)}")
    return importlib.import_module(f"dafast.data.readers.{name}").READER
