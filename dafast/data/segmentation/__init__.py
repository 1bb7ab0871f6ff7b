"""Data sets with a class for every pixel, one file each; `READERS` has them by name.

A reader takes the data set's folder (or a file) and returns a `SegmentationDataset`. It refuses a
folder with another layout and shows the expected one. Samples are read on access.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dafast.data.segmentation._dataset import (
    IGNORE,
    SegmentationDataset,
    SegmentationSample,
)
from dafast.data.segmentation.ade20k import ade20k
from dafast.data.segmentation.cityscapes import cityscapes
from dafast.data.segmentation.listed import listed
from dafast.data.segmentation.synthetic import synthetic

READERS: dict[str, Callable[[Path, bool], SegmentationDataset]] = {
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "list": listed,
    "synthetic": synthetic,
}
"""The readers by name. They take a path, and whether it is for training: which split is read."""

__all__ = ["IGNORE", "READERS", "SegmentationDataset", "SegmentationSample"]
