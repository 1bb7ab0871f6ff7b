"""What the readers share: images as they are stored, and what to say of a wrong folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..samples import DataMissingError

logger = logging.getLogger("dafast")


def missing(root: Path, what: str, layout: str) -> DataMissingError:
    """The error of a folder that is not laid out as the reader expects."""
    if not root.exists():
        what = "does not exist"
    return DataMissingError(f"{root}: {what}; expected:\n{layout.rstrip()}")


def first_file(candidates: Iterable[Path]) -> Path | None:
    """The first of the paths that is a file."""
    return next((path for path in candidates if path.is_file()), None)


def warn_of_count(name: str, count: int, published: int, unit: str = "images") -> None:
    """Says when a data set is not complete: its score is then not the published benchmark's."""
    if count != published:
        logger.warning(
            "%s: %d %s found; the published benchmark has %d", name, count, unit, published
        )


def _open(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path)
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error
    return image


def read_image(path: Path) -> np.ndarray:
    """RGB as it is stored, uint8 (H, W, 3): an EXIF orientation would turn it off its truth."""
    return np.asarray(_open(path).convert("RGB"))


def read_png16(path: Path) -> np.ndarray:
    """A 16-bit single-channel PNG, uint16 (H, W).

    Raises:
        ValueError: If it is something else, such as an 8-bit picture of a depth map.
    """
    image = _open(path)
    if image.mode not in ("I;16", "I;16B", "I;16L", "I"):
        raise ValueError(f"{path}: a 16-bit depth map is expected; its mode is {image.mode}")
    return np.asarray(image).astype(np.uint16)


def read_npy(path: Path) -> np.ndarray:
    """A .npy file without pickled objects; a last axis of length 1 is dropped."""
    array = np.load(path, allow_pickle=False)
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
