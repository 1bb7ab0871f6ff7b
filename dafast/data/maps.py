"""Maps of depth, disparity and masks in files: their numbers, and comparisons with them.

A limit or a marker is compared with a map in the type that the file has: 99.9 in a float32 file is
the float32 nearest to 99.9, which in float64 is another number.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from dafast.data.decode import open_picture
from dafast.data.sources import SourceError


def read_stored(path: Path, palette: bool = False) -> np.ndarray:
    """A map (H, W) in the file's own type, from a picture with one channel or a .npy file.

    Args:
        path: The file. A last axis of length 1 in a .npy file is dropped.
        palette: Whether a palette picture gives its indices; else it is refused.

    Raises:
        SourceError: If it is not one number a pixel, or a damaged .npy file.
        PictureError: If it is a damaged picture, or none.
        OSError: If it cannot be opened.
    """
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (EOFError, ValueError) as error:
            # NumPy's own message is about pickles, or advises to trust the file.
            raise SourceError(f"{path}: not a whole .npy file of numbers") from error
        if not isinstance(values, np.ndarray):
            raise SourceError(f"{path}: an archive of arrays; one .npy is needed")
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[..., 0]
    else:
        with open_picture(path) as picture:
            if picture.mode == "P" and not palette:
                raise SourceError(f"{path}: a palette picture; save its numbers as they are")
            values = np.asarray(picture)
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise SourceError(
            f"{path}: one number a pixel is needed; got the shape {values.shape} of {values.dtype}"
        )
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def read_map(path: Path) -> np.ndarray:
    """Reads a map of numbers (H, W) in float64, with the errors of `read_stored`."""
    return read_stored(path).astype(np.float64)


def own_number(number: float, dtype: np.dtype) -> float:
    """A number as a file of this type holds it, for exact comparison with its values.

    Of integers: the number itself, without the rounding error of a division.
    """
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(dtype.type(number))
    if math.isfinite(number) and math.isclose(number, round(number), rel_tol=1e-12):
        return float(round(number))
    return number


def within(
    values: np.ndarray, scale: float, min_depth: float = 0.0, max_depth: float = math.inf
) -> np.ndarray:
    """Where stored depth times `scale` is from `min_depth` to `max_depth`, bool (H, W).

    Infinite depth (sky) is not too far; NaN is never within.
    """
    low, high = (own_number(limit / scale, values.dtype) for limit in (min_depth, max_depth))
    return (values >= low) & ((values <= high) | np.isposinf(values))


def invert_depth(
    depth: np.ndarray, known: np.ndarray, *, min_depth: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """1/depth, and where it is known.

    Args:
        depth: (H, W), in the file's own type. Infinite depth gives disparity 0, a label (sky).
        known: (H, W) bool; depth that is not positive is not known either.
        min_depth: Depth below it is not known.

    Returns:
        Disparity (H, W) float64 and the mask.
    """
    known = known & (depth > 0)
    if min_depth:
        known &= within(depth, 1.0, min_depth)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 / depth.astype(np.float64), known
