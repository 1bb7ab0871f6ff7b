"""Shared by the readers: images as they are stored, and errors about a wrong folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..._warnings import DataWarning, warn
from ...data.decode import open_picture
from ..samples import DataMissingError


def missing(root: Path, what: str, layout: str) -> DataMissingError:
    """The error for a folder with another layout than the reader expects."""
    if not root.exists():
        what = "does not exist"
    return DataMissingError(f"{root}: {what}; expected:\n{layout.rstrip()}")


def first_file(candidates: Iterable[Path]) -> Path | None:
    """The first of the paths that is a file."""
    return next((path for path in candidates if path.is_file()), None)


def warn_of_count(name: str, count: int, published: int, unit: str = "images") -> None:
    """Warns of an incomplete data set, whose score is not the published benchmark's."""
    if count != published:
        text = f"{name}: {count} {unit} found; the published benchmark has {published}"
        warn(DataWarning, text)


def read_stored_image(path: Path) -> np.ndarray:
    """RGB as it is stored, uint8 (H, W, 3); EXIF orientation is ignored, as the truth has none.

    Raises:
        PictureError: If it is damaged or not a picture.
    """
    with open_picture(path) as picture:
        return np.asarray(picture.convert("RGB"))


def read_png16(path: Path) -> np.ndarray:
    """A 16-bit single-channel PNG, uint16 (H, W).

    Raises:
        ValueError: If it is something else, for example an 8-bit picture of a depth map.
    """
    with open_picture(path) as picture:
        if picture.mode not in ("I;16", "I;16B", "I;16L", "I"):
            raise ValueError(f"{path}: a 16-bit depth map is expected; its mode is {picture.mode}")
        return np.asarray(picture).astype(np.uint16)


def read_npy(path: Path) -> np.ndarray:
    """A .npy file without pickled objects; a last axis of length 1 is dropped."""
    array = np.load(path, allow_pickle=False)
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
