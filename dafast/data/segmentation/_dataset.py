"""Photos with their class maps, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dafast._warnings import DataWarning, warn
from dafast.data.decode import DECODE_ERRORS, open_picture
from dafast.data.shards import SampleError, ShardError, check_bad_share
from dafast.data.sources import SourceError
from dafast.files import explain_kind

IGNORE = 255
"""In a class map: a pixel that is neither learned nor scored."""


class SegmentationSample(NamedTuple):
    """One photo with the class of every pixel.

    Attributes:
        key: Its name in the data set.
        image: (H, W, 3) uint8 RGB, as it is stored.
        classes: (H, W) uint8: index into the data set's classes, or `IGNORE`.
        skipped: Unreadable samples that this one replaces: "key: reason".
    """

    key: str
    image: np.ndarray
    classes: np.ndarray
    skipped: tuple[str, ...] = ()


class SegmentationDataset(Sequence[SegmentationSample]):
    """A data set whose samples are read on access and not kept.

    Args:
        classes: Names, in order of index.
        keys: Names of the samples.
        load: Reads image and class map of sample i.
        max_bad_fraction: Largest tolerated fraction of unreadable samples (in this process). Each
            is named and replaced by the next.
    """

    def __init__(
        self,
        classes: Sequence[str],
        keys: Sequence[str],
        load: Callable[[int], tuple[np.ndarray, np.ndarray]],
        max_bad_fraction: float = 0.01,
    ) -> None:
        self.classes = tuple(classes)
        self.keys = keys
        self.load = load
        self.max_bad_fraction = max_bad_fraction
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> str:
        """The sample's name in messages."""
        return self.keys[index]

    def read(self, index: int) -> SegmentationSample:
        """Reads exactly this sample.

        Raises:
            SampleError: If it cannot be read, or photo and map differ in size.
        """
        key = self.keys[index]
        try:
            image, classes = self.load(index)
        except (*DECODE_ERRORS, SourceError) as error:
            raise SampleError(f"{key}: {explain_kind(error)}") from error
        if image.shape[:2] != classes.shape:
            raise SampleError(
                f"{key}: the photo is {image.shape[:2]}, its class map {classes.shape} (rows, "
                "columns)"
            )
        known = classes[classes != IGNORE]
        if known.size and int(known.max()) >= len(self.classes):
            raise SampleError(
                f"{key}: class {int(known.max())}; there are {len(self.classes)}, counted from 0, "
                f"and {IGNORE} for pixels that do not count"
            )
        # Writable, as torch wants what it wraps; Pillow's arrays are not.
        image, classes = (np.require(a, requirements=["C", "W"]) for a in (image, classes))
        return SegmentationSample(key, image, classes)

    def __getitem__(self, index: Any) -> Any:
        """A sample; one that cannot be read is replaced by the next that can."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a set of {len(self)}")
        skipped: list[str] = []
        for shift in range(len(self)):
            candidate = (index + shift) % len(self)
            if candidate not in self.bad:
                try:
                    return self.read(candidate)._replace(skipped=tuple(skipped))
                except SampleError as error:
                    self.bad[candidate] = str(error)
                    warn(DataWarning, f"skipped: {error}")
                    check_bad_share(self.bad.values(), len(self), self.max_bad_fraction)
            skipped.append(self.bad[candidate])
        raise ShardError("no sample of the set can be read")


class PathPairs:
    """Reads samples that are two picture files each; for `SegmentationDataset`.

    Args:
        pairs: Photo and class map of each.
        read_classes: Reads a map: class indices or `IGNORE`, (H, W) uint8.
    """

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], read_classes: Callable[[Path], np.ndarray]
    ) -> None:
        self.pairs, self.read_classes = pairs, read_classes

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        photo, label = self.pairs[index]
        with open_picture(photo) as picture:
            image = np.asarray(picture.convert("RGB"))
        return image, self.read_classes(label)


def read_indices(path: Path | bytes) -> np.ndarray:
    """A picture of class indices as (H, W) uint8: gray with 8 bits, or the numbers of a palette.

    Args:
        path: A path, or the content of the file.

    Raises:
        SourceError: If it is another kind of picture.
        PictureError: If it is damaged.
    """
    with open_picture(path) as picture:
        if picture.mode not in ("L", "P"):
            where = "" if isinstance(path, bytes) else f"{path}: "
            raise SourceError(
                f"{where}a picture of mode {picture.mode}; class maps are 8-bit gray or palette "
                "pictures of class indices"
            )
        return np.asarray(picture)


def wrong_folder(root: Path, what: str, layout: str) -> SourceError:
    """The error for a folder with another layout than the reader expects."""
    if not root.exists():
        what = "does not exist"
    return SourceError(f"{root}: {what}; expected\n{layout.strip()}")


def warn_if_incomplete(name: str, root: Path, count: int, published: int) -> None:
    """Warns if a data set is not complete."""
    if count != published:
        warn(DataWarning, f"{name}: {count} photos in {root}; published: {published}")
